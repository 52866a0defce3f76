"""A mixture of experts: each token goes through the k best of E MLPs, none is dropped. Shazeer et al. 2017.

arXiv:1701.06538; Mixtral: Jiang et al. 2024, arXiv:2401.04088; shared experts: Dai et al. 2024, arXiv:2401.06066.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from gptlab.components.context import Context
from gptlab.components.mlp.activations import ACTIVATIONS, Activation
from gptlab.components.mlp.balance import BALANCES
from gptlab.components.mlp.experts import Experts, GatedMLP
from gptlab.components.mlp.gates import make_gate
from gptlab.components.mlp.glu import GLU
from gptlab.components.mlp.grouped import groups_of
from gptlab.components.mlp.hidden import hidden_size
from gptlab.components.mlp.none import NoMLP
from gptlab.components.mlp.plain import Plain
from gptlab.components.mlp.router import Router, Routing
from gptlab.components.shape import Shape
from gptlab.errors import ConfigError
from gptlab.registry import register


@register("mlp", "moe")
class MoE(nn.Module):
    """The k best of E experts for each token, weighted by a router. Shazeer et al. 2017, arXiv:1701.06538.

    Checked against transformers Mixtral, Qwen2Moe, Qwen3Moe, DeepseekV3 and gpt-oss.
    """

    width: ClassVar[str] = "expand"  # the option that match= may choose
    takes_context: ClassVar[bool] = True
    chooses: ClassVar[bool] = True  # between paths: where two are nearly equal, rounding takes another one
    beside: ClassVar[dict[str, dict[str, object]]] = {"top_group": {"n_group": 4}, "shared_gate": {"n_shared": 1}}
    examples: ClassVar[dict[str, object]] = {"limit": 2.0}  # few entries are so near to it that a small step crosses

    def __init__(
        self,
        shape: Shape,
        *,
        n_expert: Annotated[int, "experts"] = 8,
        top_k: Annotated[int, "experts that a token goes through"] = 2,
        expand: Annotated[float, "hidden size of one expert over n_embd; two at 4/3 cost a plain MLP at 4"] = 4 / 3,
        gated: Annotated[bool, "experts are glu; false: plain"] = True,
        activation: Activation = "silu",
        limit: Annotated[float | None, "of gated experts, as in glu"] = None,
        offset: Annotated[float, "of gated experts, as in glu"] = 0.0,
        bias: Annotated[bool | None, "biases in the experts; null: model.bias"] = None,
        router: Annotated[Literal["softmax", "sigmoid"], "makes scores of the router's logits"] = "softmax",
        router_bias: Annotated[bool, "a learned bias in the router"] = False,
        renormalise: Annotated[bool, "let the weights of a token's experts sum to 1"] = True,
        scale: Annotated[float, "of the weights"] = 1.0,
        n_group: Annotated[int, "groups of experts; a token chooses in the best of them"] = 1,
        top_group: Annotated[int, "groups that a token chooses in"] = 1,
        n_shared: Annotated[int, "experts that every token goes through, made as one MLP"] = 0,
        shared_gate: Annotated[bool, "a sigmoid gate on the shared experts"] = False,
        balance: Annotated[Literal["none", "loss", "bias"], "what keeps the experts' loads equal"] = "loss",
        balance_rate: Annotated[float | None, "weight of the loss (null: 0.01), step of the bias (0.001)"] = None,
    ) -> None:
        super().__init__()
        if not gated and (limit is not None or offset != 0):
            raise ConfigError("limit and offset are of gated experts: set gated=true, or leave both out.")
        if n_shared < 0 or (shared_gate and n_shared == 0):
            raise ConfigError(f"n_shared must be 0 or more, and 1 or more for a shared_gate, but is {n_shared}.")
        hidden, bias = hidden_size(shape, expand), shape.bias if bias is None else bias
        routing = Routing(n_expert, top_k, router, renormalise, scale, router_bias, n_group, top_group)
        self.n_expert, self.top_k = n_expert, top_k
        self.router = Router(shape.n_embd, routing, BALANCES[balance](n_expert, balance_rate))
        inner = make_gate(activation, limit, offset) if gated else ACTIVATIONS[activation]()
        self.experts = Experts(shape, n_expert, hidden, inner, bias)
        self.shared: nn.Module = NoMLP(shape)
        if n_shared:
            wide: dict[str, Any] = {"expand": n_shared * hidden / shape.n_embd, "activation": activation, "bias": bias}
            self.shared = GLU(shape, limit=limit, offset=offset, **wide) if gated else Plain(shape, **wide)
        if shared_gate:
            self.shared = GatedMLP(shape, self.shared)

    def forward(self, x: Float[Tensor, "B T C"], context: Context) -> Float[Tensor, "B T C"]:
        """The weighted sum of the chosen experts, and the shared ones.

        The pairs of a token and an expert are sorted by expert, go through the experts, and are summed by token.
        """
        scores, chosen, weights = self.router(x)
        pairs, order = chosen.flatten().sort(stable=True)
        groups = groups_of(pairs, self.n_expert)
        self.router.balance.watch(scores.flatten(0, 1), groups.sizes, context)
        y = self.experts(x.flatten(0, 1)[order // self.top_k], groups)
        return (weights.unsqueeze(-1) * y[order.argsort()].unflatten(0, chosen.shape)).sum(-2) + self.shared(x)
