"""A gptlab model behind the interface of transformers. An export with custom code carries this file, and all it needs.

Checked against gptlab itself: equal logits, and generate() with the model's own memories.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from gptlab.components.context import Cache
from gptlab.config import ModelConfig
from gptlab.model import GPT


class GptlabConfig(PretrainedConfig):
    """The options of a model, in `model`; beside them, what others ask a config for."""

    model_type = "gptlab"

    def __init__(self, model: dict[str, Any] | None = None, **settings: Any) -> None:
        self.model = model or {}
        super().__init__(**settings)


class GptlabForCausalLM(PreTrainedModel, GenerationMixin):
    """GPT for `from_pretrained`, `generate` and pipelines. Texts of one batch must be equally long: no padding."""

    config_class = GptlabConfig
    base_model_prefix = "gpt"
    main_input_name = "input_ids"
    _tied_weights_keys = {"gpt.head.weight": "gpt.token_embedding.weight"}  # noqa: RUF012  (theirs is mutable too)
    _is_stateful = True  # memories cannot be wound back, as beams and assistants would

    def __init__(self, config: GptlabConfig) -> None:
        super().__init__(config)
        self.gpt = GPT(ModelConfig(**config.model))
        for module in self.gpt.modules():  # constants come from the file too: transformers builds without values
            module._non_persistent_buffers_set.clear()
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the token after each of `input_ids`, which follow those that `past_key_values` has seen."""
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ValueError("This model takes no padding: give it texts of one length at a time.")
        if use_cache and past_key_values is None:
            past_key_values = self.gpt.new_cache(len(input_ids), self.gpt.config.block_size)
        hidden, _context = self.gpt.hidden(input_ids, past_key_values)
        logits = self.gpt.logits(hidden[:, -logits_to_keep:])
        loss = None if labels is None else F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)  # type: ignore[arg-type]

    def prepare_inputs_for_generation(  # type: ignore[override]  # our memories are no Cache of theirs
        self, input_ids: Tensor, past_key_values: Cache | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The tokens that the memories have not seen yet."""
        seen = past_key_values.length if past_key_values else 0
        kept = {key: kwargs.get(key) for key in ("attention_mask", "use_cache")}
        return {**kept, "input_ids": input_ids[:, seen:], "past_key_values": past_key_values}

    def get_input_embeddings(self) -> Any:
        return self.gpt.token_embedding

    def get_output_embeddings(self) -> Any:
        return self.gpt.head

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # each attention makes the memory that it needs
