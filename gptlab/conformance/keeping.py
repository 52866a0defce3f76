"""Laws of keeping: what a variant holds, draws and declares, and what a compiler makes of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from gptlab import registry
from gptlab.components.attention import trait
from gptlab.conformance.cases import Case, beside, how_to_give, refusal, second_values, with_slot
from gptlab.conformance.law import EXACT, first, law
from gptlab.conformance.probes import (
    LawBroken,
    at_most,
    declared_inert,
    difference,
    identities,
    logits_of,
    no_new_parameters,
)
from gptlab.seeds import seeded


def _shows(case: Case, usual: dict[str, Any], spec: dict[str, Any]) -> bool:
    """Whether two specs of the variant give other logits, in evaluation or in training, or add other losses."""
    cases = [dataclasses.replace(case, config=with_slot(case.config, case.slot, each)) for each in (usual, spec)]
    (one, other), tokens = (each.model() for each in cases), case.tokens()
    if any(difference(*(logits_of(model, tokens, mode) for model in (one, other))) > EXACT for mode in (False, True)):
        return True
    (added, others) = (model.loss(tokens, tokens)[1] for model in (one, other))
    return added.keys() != others.keys() or any(difference(x, others[name]) > EXACT for name, x in added.items())


@law()
def every_parameter_learns_or_is_declared_inert(case: Case) -> str:
    """The loss has a finite gradient that is not 0 in every parameter, but for those that the variant calls inert."""
    model, tokens = case.model().train(), case.tokens()
    with seeded("a law"):
        model.loss(tokens, case.tokens(seed=1))[0].backward()
    inert = dict(declared_inert(model))
    deaf = any(trait(attention, "honours") is None for attention in model.attentions)  # it may use no position at all
    largest = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    for name, parameter in model.named_parameters():
        if deaf and "position." in name:
            continue
        gradient = torch.zeros(()) if parameter.grad is None else parameter.grad
        if not gradient.isfinite().all():
            raise LawBroken(f"{name} has a gradient that is not finite: look for divisions, and rows that see nothing.")
        learns = float(gradient.abs().max()) > 1e-12 * largest
        if learns and name in inert:
            raise LawBroken(f"{name} is declared inert, but has a gradient of {float(gradient.abs().max()):.1e}.")
        if not learns and name not in inert:
            raise LawBroken(f"{name} gets no gradient: use it in forward, or give the class inert = {{name: reason}}.")
    return f"{len(inert)} inert"


@law(first)
def every_option_changes_the_output(case: Case) -> str:
    """For each option another legal value changes the logits, in evaluation or in training, or is refused by name."""
    cls = registry.get(case.slot, case.name)
    refused: frozenset[str] = getattr(cls, "refuses", frozenset())
    neutral: frozenset[str] = getattr(cls, "neutral", frozenset())
    for option in registry.options(cls).values():
        usual = {**case.spec, **beside(cls, option)}
        tried = [{**usual, option.name: value} for value in second_values(cls, option)]
        legal = [spec for spec in tried if refusal(with_slot(case.config, case.slot, spec)) is None]
        if not tried or (not legal and option.name not in refused | neutral):
            raise LawBroken(how_to_give(option.name))
        if legal and option.name in refused:
            raise LawBroken(f"option {option.name!r} is declared as refused, but {legal[0]} is accepted.")
        changes = any(_shows(case, usual, spec) for spec in legal)
        if changes and option.name in neutral:
            raise LawBroken(f"option {option.name!r} is declared neutral, but {legal[0]} changes the output.")
        if legal and not changes and option.name not in neutral:
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


@law(first)
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


@law(first)
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


@law(first)
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


@law(first)
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
        raise LawBroken(f"{_reason(error)} Look for Python that depends on tensors.") from error
    finally:
        torch.compiler.reset()
    return "1 graph"


@law(first)
def new_sizes_compile_no_new_graph(case: Case) -> str:
    """Compiled for dynamic shapes, another batch size and another length run the graph that there is."""
    model = case.model(dtype=torch.float32)
    torch.compiler.reset()
    step = torch.compile(model.loss, fullgraph=True, dynamic=True, backend="eager")
    try:
        step(case.tokens(20, n_rows=3), case.tokens(20, n_rows=3, seed=1))
        with torch.compiler.set_stance("fail_on_recompile"):
            step(case.tokens(13, n_rows=5), case.tokens(13, n_rows=5, seed=1))
    except Exception as error:  # dynamo's errors have no common base; any of them means the same here
        raise LawBroken(f"{_reason(error)} Look for Python that depends on sizes.") from error
    finally:
        torch.compiler.reset()
    return "1 graph"


def _reason(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line}"
