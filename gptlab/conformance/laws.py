"""The laws of a variant. Each takes a case, returns what it measured, and raises LawBroken where it does not hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gptlab import registry
from gptlab.components.attention import trait
from gptlab.components.attention.kernels import KERNELS, MATH
from gptlab.components.context import Cache
from gptlab.config import as_spec
from gptlab.conformance.cases import PLAIN, Case, how_to_give, refusal, second_values, with_slot
from gptlab.conformance.probes import (
    LawBroken,
    at_least,
    at_most,
    bf16_error,
    declared_inert,
    difference,
    identities,
    influence,
    is_none,
    logits_of,
    no_new_parameters,
    softmax_mixers,
    with_kernel,
    with_other_ids,
)
from gptlab.seeds import seeded

EXACT = 1e-9  # of logits of size ~1 in float64, where only the order of sums may differ
TURNED = 1e-4  # where positions differ: angles are float32
SEEN = 1e-7  # what an effect must at least be

Measure = Callable[[Case], str]


@dataclass(frozen=True)
class Law:
    """A sentence that a variant must make true."""

    name: str
    run: Measure
    applies: Callable[[Case], bool]

    @property
    def meaning(self) -> str:
        """The law as a sentence."""
        return (self.run.__doc__ or "").partition("\n")[0]


LAWS: dict[str, Law] = {}


def law(applies: Callable[[Case], bool] = lambda case: True) -> Callable[[Measure], Measure]:
    """Decorator: add a function to LAWS, for the cases that it applies to."""

    def add(run: Measure) -> Measure:
        LAWS[run.__name__] = Law(run.__name__, run, applies)
        return run

    return add


def _first(case: Case) -> bool:
    return case.first


def _shows(case: Case, spec: dict[str, Any]) -> bool:
    """Whether another spec of the variant moves the logits, in evaluation or in training."""
    changed = dataclasses.replace(case, config=with_slot(case.config, case.slot, spec))
    one, other, tokens = case.model(), changed.model(), case.tokens()
    modes = (False, True)
    return any(difference(*(logits_of(model, tokens, mode) for model in (one, other))) > EXACT for mode in modes)


def _knows_no_order(case: Case) -> bool:
    """Whether nothing but the position encoding can tell the order of tokens."""
    if case.slot == "position" and not is_none(case.config.position):
        return False
    return _mixes_without_order(case) and all(trait(a, "reach") is None for a in case.model(noise=0).attentions)


def _mixes_without_order(case: Case) -> bool:
    return all(trait(a, "orderless") for a in case.model(noise=0).attentions)


@law()
def future_tokens_do_not_change_the_past(case: Case) -> str:
    """Changing token t leaves the logits before t alone, in evaluation and in training."""
    model, tokens, worst = case.model(), case.tokens(), 0.0
    for training in (False, True):
        before = logits_of(model, tokens, training)
        for t in (1, tokens.shape[1] // 2, tokens.shape[1] - 1):
            after = logits_of(model, with_other_ids(tokens, (slice(None), t)), training)
            moved = difference(before[:, :t], after[:, :t])
            at_most(moved, EXACT, f"changing token {t} moved logits before it: look at the mask, at means over tokens")
            worst = max(worst, moved)
    return f"largest change {worst:.1e}"


@law()
def no_gradient_flows_from_the_past_to_the_future(case: Case) -> str:
    """d logits[i] / d embedding[j] is 0 for j > i, and is not 0 for j = i."""
    model, tokens, worst = case.model(), case.tokens(), 0.0
    for i in (0, 1, tokens.shape[1] // 2, tokens.shape[1] - 1):
        felt = influence(model, tokens, i)
        leak = float(felt[i + 1 :].max()) if i + 1 < len(felt) else 0.0
        at_most(leak, EXACT, f"the logits of token {i} have a gradient to later tokens: look at the mask")
        at_least(float(felt[i]), SEEN, f"token {i} does not influence its own output: look at the mask's diagonal")
        worst = max(worst, leak)
    return f"largest gradient {worst:.1e}"


@law(
    lambda case: case.slot == "attention" and any(trait(a, "reach") is not None for a in case.model(noise=0).attentions)
)
def a_token_looks_back_exactly_as_far_as_it_says(case: Case) -> str:
    """Of one layer, the last token feels the `reach` newest tokens, itself included, and no other."""
    model = case.model(n_layer=1)
    reach = next(reach for a in model.attentions if (reach := trait(a, "reach")) is not None)
    felt = influence(model, case.tokens(), case.config.block_size - 1)
    at_most(float(felt[:-reach].max()), EXACT, f"the last token feels one {reach} or more back: look at the window")
    at_least(float(felt[-reach]), EXACT, f"the last token does not feel the one {reach - 1} back: look at the window")
    return f"reach {reach}"


@law()
def sequences_in_a_batch_do_not_talk(case: Case) -> str:
    """Changing one row leaves the others alone, and a batch of two is two batches of one."""
    model, tokens, worst = case.model(), case.tokens(), 0.0
    for training in (False, True):
        before, after = (logits_of(model, rows, training)[0] for rows in (tokens, with_other_ids(tokens, 1)))
        moved = difference(before, after)
        at_most(moved, EXACT, "changing row 1 moved the logits of row 0: look for sums and means over the batch")
        worst = max(worst, moved)
    apart = torch.cat([logits_of(model, row[None]) for row in tokens])
    moved = difference(logits_of(model, tokens), apart)
    at_most(moved, EXACT, "a batch of two differs from two batches of one: look for what depends on the batch size")
    return f"largest change {max(worst, moved):.1e}"


@law(_knows_no_order)
def without_position_the_order_of_the_past_does_not_matter(case: Case) -> str:
    """With one layer and position none, permuting the past leaves the last logits alone."""
    model, tokens = case.model(n_layer=1, position="none"), case.tokens()
    past = torch.arange(tokens.shape[1] - 1).flip(0)
    permuted = torch.cat((tokens[:, past], tokens[:, -1:]), dim=1)
    moved = difference(logits_of(model, tokens)[:, -1], logits_of(model, permuted)[:, -1])
    at_most(moved, EXACT, "reversing the past moved the last logits: drop orderless = True, or look for indices")
    return f"largest change {moved:.1e}"


def _says_what_it_honours(case: Case) -> bool:
    return all(trait(a, "honours") is not None for a in case.model(noise=0).attentions)


@law(lambda case: not is_none(case.config.position) and _says_what_it_honours(case))
def a_position_that_is_accepted_has_an_effect(case: Case) -> str:
    """The same weights without the position encoding give other logits."""
    tokens = case.tokens()
    moved = difference(logits_of(case.model(), tokens), logits_of(case.model(position="none"), tokens))
    way_out = "call its hooks, or leave them out of honours and the combination is refused"
    at_least(moved, SEEN, f"position {as_spec(case.config.position)['name']!r} changes nothing: {way_out}")
    return f"changes the logits by {moved:.1e}"


@law(lambda case: case.model(noise=0).position.relative and _mixes_without_order(case))
def a_relative_position_sees_distances_alone(case: Case) -> str:
    """The same tokens, 17 positions later, have the same logits."""
    model, tokens = case.model(), case.tokens()
    later = Cache([None] * len(model.blocks), length=17)
    with torch.no_grad():
        moved = difference(model(tokens), model(tokens, later))
    at_most(moved, TURNED, "a shift by 17 positions moved the logits: look at the use of absolute positions")
    return f"largest change {moved:.1e}"


@law(lambda case: bool(softmax_mixers(case.model(noise=0))) and case.slot in ("attention", "position"))
def kernels_agree(case: Case) -> str:
    """Every kernel that can do what the mixer asks gives the logits and gradients of the definition."""
    model, tokens, worst = case.model(), case.tokens(), 0.0
    reference = with_kernel(model, tokens, MATH)
    for kernel in KERNELS:
        if all(mixer.plan.needs() <= kernel.can for mixer in softmax_mixers(model)):
            computed = with_kernel(model, tokens, kernel)
            for what, wanted, got in zip(("logits", "gradients"), reference, computed, strict=True):
                apart = difference(wanted, got) / max(1.0, float(wanted.abs().max()))
                at_most(apart, EXACT, f"the {what} of kernel {kernel.name!r} differ from those of 'math'")
                worst = max(worst, apart)
    return f"largest difference {worst:.1e}"


@law()
def cached_is_uncached(case: Case) -> str:
    """Fed at once, one by one, in chunks or mixed, past block_size where the position allows: the same logits."""
    model, worst = case.model(), 0.0
    limit = model.position.limit
    tokens = case.tokens(limit or case.config.block_size + 6)
    whole, total = logits_of(model, tokens), tokens.shape[1]
    feeds = {"at once": [total], "one by one": [1] * total, "in chunks of 7, 1, 1, 5, ...": [7, 1, 1, 5, total - 14]}
    reaches = [trait(attention, "reach") for attention in model.attentions]
    enough = [total, max(reaches)] if reaches and all(reaches) else [total]  # a window needs no more memory than itself
    for max_len in enough:
        for how, feed in feeds.items():
            cache = model.new_cache(len(tokens), max_len)
            with torch.no_grad():
                pieces = torch.cat([model(piece, cache) for piece in tokens.split(feed, dim=1)], dim=1)
            apart = difference(whole, pieces)
            at_most(apart, EXACT, f"fed {how} with memory for {max_len}, the logits are not the uncached ones")
            worst = max(worst, apart)
    return f"largest difference {worst:.1e}"


@law()
def every_parameter_learns_or_is_declared_inert(case: Case) -> str:
    """The loss has a finite gradient that is not 0 in every parameter, but for those that the variant calls inert."""
    model, tokens = case.model().train(), case.tokens()
    with seeded("a law"):
        model.loss(tokens, case.tokens(seed=1))[0].backward()
    inert = dict(declared_inert(model))
    largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    for name, parameter in model.named_parameters():
        gradient = torch.zeros(()) if parameter.grad is None else parameter.grad
        if not gradient.isfinite().all():
            raise LawBroken(f"{name} has a gradient that is not finite: look for divisions, and rows that see nothing.")
        learns = float(gradient.abs().max()) > 1e-12 * largest
        if learns and name in inert:
            raise LawBroken(f"{name} is declared inert, but has a gradient of {float(gradient.abs().max()):.1e}.")
        if not learns and name not in inert:
            raise LawBroken(f"{name} gets no gradient: use it in forward, or give the class inert = {{name: reason}}.")
    return f"{len(inert)} inert"


@law(_first)
def every_option_changes_the_output(case: Case) -> str:
    """For each option another legal value changes the logits, in evaluation or in training, or is refused by name."""
    cls = registry.get(case.slot, case.name)
    refused: frozenset[str] = getattr(cls, "refuses", frozenset())
    for option in registry.options(cls).values():
        tried = [{**case.spec, option.name: value} for value in second_values(cls, option)]
        legal = [spec for spec in tried if refusal(with_slot(case.config, case.slot, spec)) is None]
        if not tried or (not legal and option.name not in refused):
            raise LawBroken(how_to_give(option.name))
        if legal and option.name in refused:
            raise LawBroken(f"option {option.name!r} is declared as refused, but {legal[0]} is accepted.")
        if legal and not any(_shows(case, spec) for spec in legal):
            raise LawBroken(f"option {option.name!r} changes nothing, tried with {legal[0]}: use it or remove it.")
    return f"{len(registry.options(cls))} options"


@law()
def the_state_dict_holds_everything(case: Case) -> str:
    """A model of another seed that is given the tensors has the same logits, bit for bit."""
    model, tokens = case.model(), case.tokens()
    by_tensors, by_state = case.model(seed=1), case.model(seed=2)
    by_tensors.load_tensors(model.tensors())
    by_state.load_state_dict(model.state_dict())
    for other in (by_tensors, by_state):
        moved = difference(logits_of(model, tokens), logits_of(other, tokens))
        at_most(moved, 0.0, "loaded weights give other logits: what __init__ draws must be a parameter or a buffer")
    return "same bits"


@law(_first)
def the_same_seed_gives_the_same_bits(case: Case) -> str:
    """Initial values follow from (seed, name), whatever else was drawn, and building draws nothing of the user's."""
    one = case.model(noise=0).tensors()
    before = torch.get_rng_state()
    torch.rand(7)
    moved = torch.get_rng_state()
    again, other = case.model(noise=0).tensors(), case.model(noise=0, seed=1).tensors()
    wider = case.model(noise=0, vocab_size=31).tensors()
    if not torch.equal(moved, torch.get_rng_state()):
        raise LawBroken("building the model moved torch's global generator: draw without seeding.")
    torch.set_rng_state(before)
    for name, tensor in one.items():
        shared = wider[name] if wider[name].shape == tensor.shape else tensor
        if not torch.equal(tensor, again[name]) or not torch.equal(tensor, shared):
            raise LawBroken(f"{name} differs between two models of seed 0: draw it from torch's own generator.")
    if all(torch.equal(tensor, other[name]) for name, tensor in one.items()):
        raise LawBroken("seeds 0 and 1 give the same tensors: do not seed in __init__ or reset_parameters.")
    return f"{len(one)} tensors"


@law(_first)
def parameters_are_created_at_construction(case: Case) -> str:
    """forward creates no parameter and no buffer, and swaps none."""
    model, tokens = case.model(), case.tokens()
    before = identities(model)
    with no_new_parameters():
        for training in (True, False):
            logits_of(model, tokens, training)
    for name, identity in identities(model).items():
        if before.get(name) != identity:
            raise LawBroken(f"{name} is new after forward: create it in __init__, where the optimizer sees it.")
    return f"{len(before)} tensors"


@law(_first)
def evaluation_is_repeatable(case: Case) -> str:
    """In evaluation forward draws no random number, and gives the same tokens the same logits twice."""
    model, tokens = case.model(), case.tokens()
    before = torch.get_rng_state()
    with torch.no_grad():
        moved = difference(model(tokens), model(tokens))
    at_most(moved, 0.0, "the same tokens have other logits the second time: look for random draws and state in forward")
    if not torch.equal(before, torch.get_rng_state()):
        raise LawBroken("forward draws in evaluation: make what is drawn a parameter or a buffer in __init__.")
    return "same bits"


@law()
def bf16_stays_near_the_definition(case: Case) -> str:
    """Under bf16 autocast the logits are at most twice as far from float64 as those of the plain variant on `math`."""
    tokens = case.tokens()
    judged = bf16_error(case.model(), case.model(dtype=torch.float32), tokens)
    yardstick = dataclasses.replace(case, config=with_slot(case.config, case.slot, PLAIN[case.slot]))
    allowed = 2 * bf16_error(yardstick.model(), yardstick.model(dtype=torch.float32), tokens) + 2**-9
    at_most(judged, allowed, "the relative error in bf16 is too large: compute sums, softmax and norms in float32")
    return f"error {judged:.1e} of {allowed:.1e}"


@law(_first)
def the_loss_compiles_whole_and_once(case: Case) -> str:
    """torch.compile takes the loss as one graph, and a second step does not compile again."""
    model = case.model(dtype=torch.float32).train()
    torch.compiler.reset()
    step = torch.compile(model.loss, fullgraph=True, backend="eager")
    try:
        step(case.tokens(), case.tokens(seed=1))[0].backward()
        with torch.compiler.set_stance("fail_on_recompile"):
            step(case.tokens(seed=2), case.tokens(seed=3))[0].backward()
    except Exception as error:  # dynamo's errors have no common base; any of them means the same here
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise LawBroken(f"{type(error).__name__}: {reason} Look for Python that depends on tensors.") from error
    finally:
        torch.compiler.reset()
    return "1 graph"
