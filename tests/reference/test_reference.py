"""Every family's logits, decoded tokens and gradients are those of transformers, on every kernel that can."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gptlab import registry
from gptlab.components.context import Context
from gptlab.components.shape import Shape
from gptlab.weights.table import Row, links, read
from reference.families import FAMILIES
from reference.harness import (
    CLOSE,
    CLOSE_SLOPE,
    N_TOKENS,
    Family,
    build,
    distance,
    gradients,
    links_of,
    our_logits_in_pieces,
    reference,
    their_logits_in_steps,
)

PIECES = (5, 1, 1, 9, 1, 7)  # the window ends inside of one; single tokens; more than a window
assert sum(PIECES) == N_TOKENS
every_family = pytest.mark.parametrize("family", FAMILIES, ids=str)
every_kernel = pytest.mark.parametrize(
    ("family", "kernel"),
    [pytest.param(family, kernel, id=f"{family}-{kernel}") for family in FAMILIES for kernel in family.kernels],
)


@every_family
def test_the_reference_agrees_with_itself(family: Family) -> None:
    theirs = reference(family)
    for other in family.implementations[1:]:
        assert distance(reference(family, other).logits, theirs.logits) < CLOSE
    if family.cache:
        assert distance(their_logits_in_steps(theirs.model, theirs.tokens, family.cache), theirs.logits) < CLOSE


@every_family
def test_every_tensor_is_read_and_written_once(family: Family) -> None:
    theirs, ours = reference(family).tensors, build(family, family.kernels[0]).tensors()
    found = links(family.table, ours)
    assert sorted(name for link in found for name in link.ours) == sorted(ours)
    assert sorted(link.theirs for link in found) == sorted(theirs)
    for link in found:
        used = slice(link.row.skip, None)
        assert torch.equal(link.write([ours[name] for name in link.ours])[used], theirs[link.theirs][used])


@every_kernel
@torch.no_grad()
def test_logits_are_those_of_the_reference(family: Family, kernel: str | None) -> None:
    theirs = reference(family)
    assert distance(build(family, kernel)(theirs.tokens), theirs.logits) < CLOSE


@every_kernel
def test_tokens_decoded_in_uneven_pieces_have_the_logits_of_the_reference(family: Family, kernel: str | None) -> None:
    theirs = reference(family)
    assert distance(our_logits_in_pieces(build(family, kernel), theirs.tokens, PIECES), theirs.logits) < CLOSE


@every_family
def test_loss_and_gradients_are_those_of_the_reference(family: Family) -> None:
    theirs, ours = reference(family), build(family, family.kernels[0])
    targets = theirs.tokens.flip(1)
    logits = theirs.model(theirs.tokens).logits
    wanted_loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    loss, _, _ = ours.loss(theirs.tokens, targets)
    assert distance(loss, wanted_loss) < CLOSE
    slopes = gradients(wanted_loss, theirs.tensors)
    learning = [link for link in links_of(family, ours) if link.theirs in slopes]
    wanted = read(learning, slopes, ours.tensors())
    found = gradients(loss, dict(ours.named_parameters()))
    assert found.keys() == wanted.keys()
    # The bias of keys has none by mathematics: what rounding makes of it is held against the steepest.
    steepest = max(float(slope.abs().max()) for slope in wanted.values())
    far = {name: distance(slope, wanted[name], steepest / 100) for name, slope in found.items()}
    assert max(far.values()) < CLOSE_SLOPE, max(far, key=lambda name: far[name])


@torch.no_grad()
def test_attention_with_the_bias_of_t5_is_that_of_t5() -> None:
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    torch.manual_seed(0)
    sizes = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}
    theirs = T5Attention(T5Config(d_model=32, num_heads=4, d_kv=12, is_decoder=True, **sizes), True, layer_idx=0).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    shape = Shape(n_embd=32, n_head=4, block_size=N_TOKENS)
    position = registry.build("position", {"name": "t5", "n_buckets": 8, "max_distance": 20}, shape)
    ours = registry.build("attention", {"name": "softmax", "head_size": 12, "scale": 1.0}, shape, position)
    table = [*(Row(name, name) for name in "qkv"), Row("proj", "o"), Row("position.table", "relative_attention_bias")]
    state = ours.state_dict()
    ours.load_state_dict(read(links(table, state), theirs.state_dict(), state))
    x, hidden = torch.randn(2, N_TOKENS, 32), torch.full((N_TOKENS, N_TOKENS), -torch.inf).triu(1)
    assert distance(ours(x, Context(torch.arange(N_TOKENS)[None])), theirs(x, mask=hidden[None, None])[0]) < CLOSE


def test_a_table_that_leaves_a_tensor_out_or_names_it_twice_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"head\.weight is in 0 rows"):
        links([Row("norm", "n")], ["norm.weight", "head.weight"])
    with pytest.raises(AssertionError, match=r"norm\.weight is in 2 rows"):
        links([Row("norm", "n"), Row("norm.weight", "n.weight")], ["norm.weight"])
    with pytest.raises(AssertionError, match="holds 2 tensors"):
        links([Row(("q", "k"), "qk")], ["q.weight"])


@pytest.mark.parametrize(
    ("groups", "rows_of_q", "rows_of_k"),
    [(1, [0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11]), (2, [0, 1, 2, 3, 6, 7, 8, 9], [4, 5, 10, 11])],
)
def test_parts_lie_side_by_side_or_take_turns(groups: int, rows_of_q: list[int], rows_of_k: list[int]) -> None:
    (link,) = links([Row(("q", "k"), "qk", groups=groups)], ["q.weight", "k.weight"])
    q, k = link.read(torch.arange(12)[:, None].expand(12, 3), [torch.Size((8, 3)), torch.Size((4, 3))])
    assert (q[:, 0].tolist(), k[:, 0].tolist()) == (rows_of_q, rows_of_k)
