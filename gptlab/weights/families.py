"""The architectures that weights come from and go to: their options, their table of names, and which one a model is.

Both ways are strict. What one side says must come back when it is translated there and back again.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gptlab.config import ModelConfig
from gptlab.errors import ConfigError, GptlabError
from gptlab.weights import architectures, names
from gptlab.weights.composition import close, composition, differences
from gptlab.weights.names import Table
from gptlab.weights.settings import SLIDING, Options, Settings, activation, settings_of

# Settings of which no logit depends, and those of rotary encodings, in which `settings.rope` is strict by itself.
INDIFFERENT = re.compile(
    r"transformers_version|architectures|model_type|_name_or_path|(torch_)?dtype|output_\w+|return_dict|use_cache|\w+2\w+"
    r"|problem_type|chunk_size_feed_forward|is_encoder_decoder|(bos|eos|pad|sep)_token_id|initializer_range|\w*dropout"
    r"|\w+_pdrop|summary_\w+|pretraining_tp|reorder_and_upcast_attn|max_window_layers|_sliding_window_pattern|rope_\w+"
    r"|use_sliding_window|is_decoder"
)
ROTARY = ("rope_theta", "rope_scaling", "head_dim")  # words that classes take beside their defaults
PARTIAL = ("rope_theta", "rope_scaling", "partial_rotary_factor")
NO_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # the defaults are of other vocabularies
QUANTISED = ("quantization_config", "compression_config")


@dataclass(frozen=True, eq=False)
class Family:
    """One architecture of transformers: what its settings mean here, and where its tensors lie."""

    model_type: str
    architecture: str
    options: Callable[[Settings], Options]
    table: Callable[[ModelConfig], Table]
    besides: tuple[str, ...] = ROTARY
    inert: str = r".*rotary_emb\.inv_freq"  # buffers that old files hold, and nobody needs

    def complete(self, said: Settings) -> Settings:
        """The settings with every default of the class written out. ConfigError for what the class refuses."""
        from transformers import CONFIG_MAPPING, logging

        told = logging.get_verbosity()
        logging.set_verbosity_error()  # families are tried with settings that are none of theirs
        try:
            config = CONFIG_MAPPING[self.model_type].from_dict({**NO_TOKENS, **copy.deepcopy(said)})
        except Exception as error:  # its validation raises whatever it likes
            reason = " ".join(str(error).split())[:160]
            raise ConfigError(f"transformers refuses these settings of {self.architecture}: {reason}") from None
        finally:
            logging.set_verbosity(told)
        return dict(config.to_dict())

    def settings(self, config: ModelConfig) -> Settings:
        """What the class would be told of this model, whether or not it can be it."""
        known = self.words | set(self.besides)
        return {key: value for key, value in settings_of(composition(config)).items() if key in known}

    @functools.cached_property
    def words(self) -> frozenset[str]:
        """The settings that the class has."""
        return frozenset(self.complete({}))

    def config(self, said: Settings) -> ModelConfig:
        """The model that settings of this class mean. ConfigError naming one that has no counterpart here."""
        whole = self.complete(said)
        with self._in_a_line():
            config = ModelConfig(**self.options(whole))
            meant, asked = _plain(self.complete(self.settings(config))), _plain(whole)
        for key, value in meant.items():
            if not INDIFFERENT.fullmatch(key) and not close(asked.get(key), value):
                raise ConfigError(
                    f"{self.architecture} with {key}={asked.get(key)} has no counterpart here; with {value} it has."
                )
        return config

    def lost(self, config: ModelConfig) -> list[str]:
        """The options that a model of this class would not have. ConfigError where it cannot be asked."""
        with self._in_a_line():
            back = ModelConfig(**self.options(self.complete(self.settings(config))))
        return differences(composition(config), composition(back))

    @contextmanager
    def _in_a_line(self) -> Iterator[None]:
        """Numbers that cannot be reckoned with (a width of 0, a scale beyond all others) are a ConfigError."""
        try:
            yield
        except GptlabError:
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ConfigError(f"No {self.architecture} has settings like these ({error}): mend them.") from None


def family_of(config: ModelConfig) -> Family:
    """The first family that has a class for this model. ConfigError naming the first option that none has."""
    lost: dict[Family, list[str]] = {}
    for family in FAMILIES if config.n_layer else ():
        try:
            lost[family] = family.lost(config)
        except ConfigError:  # settings that the class itself refuses
            continue
        if not lost[family]:
            return family
    if not lost:
        raise ConfigError(f"No class of transformers is like this model of {config.n_layer} layers.")
    nearest = min(lost, key=lambda family: len(lost[family]))
    first, *more = lost[nearest]
    besides = f" (nor {', '.join(more[:3])})" if more else ""
    raise ConfigError(
        f"The nearest class of transformers, {nearest.architecture}, has no {first}{besides}: "
        "export a model without it, or with its own code."
    )


def family_for(said: Settings) -> Family:
    """The family of a config.json. ConfigError for an architecture that is none, or weights that are quantised."""
    for key in QUANTISED:
        if said.get(key):
            kind = said[key].get("quant_method", "") if isinstance(said[key], dict) else said[key]
            raise ConfigError(f"Weights must be plain numbers, but these are quantised ({kind}): name the original.")
    known = {family.model_type: family for family in FAMILIES}
    kind = str(said.get("model_type", ""))
    if kind not in known:
        raise ConfigError(f"gptlab knows no architecture {kind!r}: it reads {', '.join(known)}.")
    return known[kind]


def hf_config(config: ModelConfig, end_of_text: int | None = None) -> Settings:
    """What config.json says of this model, for its class; `end_of_text` is the id at which texts begin and end."""
    family = family_of(config)
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **family.settings(config),
        **NO_TOKENS,
        **dict.fromkeys(("bos_token_id", "eos_token_id"), end_of_text),
        "initializer_range": config.init_std,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop") if family.model_type == "gpt2" else (), 0.0),
        "torch_dtype": "float32",
    }


def _plain(said: Settings) -> Settings:
    """Settings in which one meaning has one word."""
    plain: dict[str, Any] = {"is_causal": True, **said}  # of which no class has a default written out
    for key in ("hidden_act", "hidden_activation", "activation_function"):
        if plain.get(key):
            plain[key] = activation(plain[key])
    if "n_inner" in plain:
        plain["n_inner"] = plain["n_inner"] or 4 * plain["n_embd"]
    if "hidden_size" in plain:
        plain["head_dim"] = plain.get("head_dim") or plain["hidden_size"] // plain["num_attention_heads"]
    if SLIDING not in plain.get("layer_types", [SLIDING]):
        plain["sliding_window"] = None
    return plain


def _gpt_neox(config: ModelConfig) -> Table:
    parallel = config.slots_of_layers()[0]["block"]["name"] == "parallel"
    norms = (names.PARALLEL, names.PARALLEL_MLP) if parallel else (names.BEFORE_ATTENTION, names.BEFORE_MLP)
    return names.gpt_neox(n_head=config.n_head, attention_norm=norms[0], mlp_norm=norms[1], head="embed_out")


def _stablelm(config: ModelConfig) -> Table:
    parallel = config.slots_of_layers()[0]["block"]["name"] == "parallel"
    return (*names.llama(names.ONE_NORM if parallel else names.PRE_NORM), *names.qk_norm_of_stablelm())


def _cohere(config: ModelConfig) -> Table:
    n_kv_head = config.slots_of_layers()[0]["attention"].get("n_kv_head") or config.n_head
    return (*names.llama(names.ONE_NORM), *names.qk_norm_of_cohere(n_head=config.n_head, n_kv_head=n_kv_head))


def _always(*tables: Table) -> Callable[[ModelConfig], Table]:
    table = tuple(row for part in tables for row in part)
    return lambda _: table


_MASKS = r".*\.(attn|attention)\.(bias|masked_bias|rotary_emb\.inv_freq)"
FAMILIES = (  # in the order in which a model's class is looked for
    Family("gpt2", "GPT2LMHeadModel", architectures.gpt2, _always(names.gpt2()), (), _MASKS),
    Family(
        "gpt_neox", "GPTNeoXForCausalLM", architectures.gpt_neox, _gpt_neox,
        ("rotary_emb_base", "rotary_pct", "rope_scaling"), _MASKS,
    ),
    Family("llama", "LlamaForCausalLM", architectures.llama, _always(names.llama())),
    Family("arcee", "ArceeForCausalLM", architectures.arcee, _always(names.llama(gated=False))),
    Family("mistral", "MistralForCausalLM", architectures.mistral, _always(names.llama())),
    Family("qwen2", "Qwen2ForCausalLM", architectures.qwen2, _always(names.llama())),
    Family("qwen3", "Qwen3ForCausalLM", architectures.qwen3, _always(names.llama(), names.qk_norm())),
    Family("olmo", "OlmoForCausalLM", architectures.olmo, _always(names.llama({}))),
    Family(
        "olmo2", "Olmo2ForCausalLM", architectures.olmo2,
        _always(names.llama(names.OUT_NORM), names.qk_norm(over_projection=True)),
    ),
    Family("granite", "GraniteForCausalLM", architectures.granite, _always(names.llama())),
    Family("gemma", "GemmaForCausalLM", architectures.gemma, _always(names.llama())),
    Family("gemma2", "Gemma2ForCausalLM", architectures.gemma2, _always(names.llama(names.SANDWICH))),
    Family(
        "gemma3_text", "Gemma3ForCausalLM", architectures.gemma3,
        _always(names.llama(names.SANDWICH), names.qk_norm()), (*ROTARY, "rope_local_base_freq"),
    ),
    Family("gptj", "GPTJForCausalLM", architectures.gptj, _always(names.gptj()), (), _MASKS),
    Family("phi", "PhiForCausalLM", architectures.phi, _always(names.phi()), PARTIAL),
    Family("stablelm", "StableLmForCausalLM", architectures.stablelm, _stablelm, PARTIAL),
    Family("cohere", "CohereForCausalLM", architectures.cohere, _cohere),
)  # fmt: skip
