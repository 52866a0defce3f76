"""Laws of sight: which tokens a token may feel, and what positions, batches and documents have to do with it."""

from __future__ import annotations

import dataclasses

import torch

from gptlab.components.attention import trait
from gptlab.components.context import Cache
from gptlab.config import as_spec
from gptlab.conformance.cases import Case, refusal
from gptlab.conformance.law import EXACT, SEEN, TURNED, law
from gptlab.conformance.probes import (
    at_least,
    at_most,
    difference,
    influence,
    is_none,
    logits_of,
    visible_from,
    with_other_ids,
)


def _all_say(case: Case, name: str) -> bool:
    """Whether every attention of the case has a trait."""
    return all(trait(attention, name) for attention in case.untouched.attentions)


def _knows_no_order(case: Case) -> bool:
    """Whether nothing but the position encoding can tell the order of tokens."""
    if case.slot == "position" and not is_none(case.config.position):
        return False
    unlimited = all(trait(a, "reach") is None for a in case.untouched.attentions)
    alone = dataclasses.replace(case.config, position="none", n_layer=1)  # which a block may refuse to be
    return unlimited and _all_say(case, "orderless") and refusal(alone) is None


def _position_may_go(case: Case) -> bool:
    """Whether a position is there, is honoured by attentions that say so, and could be left out."""
    says = all(trait(a, "honours") is not None for a in case.untouched.attentions)
    return says and not is_none(case.config.position) and case.bare


@law()
def future_tokens_do_not_change_the_past(case: Case) -> str:
    """Changing token t, of no source that is seen both ways, leaves the logits before t alone, also in training."""
    model, tokens, worst = case.model(), case.tokens(), 0.0
    for training in (False, True):
        before = logits_of(model, tokens, training)
        for t in (case.n_source or 1, tokens.shape[1] // 2, tokens.shape[1] - 1):
            after = logits_of(model, with_other_ids(tokens, (slice(None), t)), training)
            moved = difference(before[:, :t], after[:, :t])
            at_most(moved, EXACT, f"changing token {t} moved logits before it: look at the mask, at means over tokens")
            worst = max(worst, moved)
    return f"largest change {worst:.1e}"


@law()
def no_gradient_flows_from_the_past_to_the_future(case: Case) -> str:
    """d logits[i] / d embedding[j] is 0 for j > i unless both are of a source seen both ways, and is not for j = i."""
    model, tokens, worst = case.model(), case.tokens(), 0.0
    for i in (0, 1, tokens.shape[1] // 2, tokens.shape[1] - 1):
        felt, source = influence(model, tokens, i), case.n_source
        future = felt[max(i + 1, source) :]
        leak = float(future.max()) if len(future) else 0.0
        at_most(leak, EXACT, f"the logits of token {i} have a gradient to later tokens: look at the mask")
        if i < source:
            at_least(float(felt[:source].min()), SEEN, f"token {i} does not feel all of its source: look at the mask")
        at_least(float(felt[i]), SEEN, f"token {i} does not influence its own output: look at the mask's diagonal")
        worst = max(worst, leak)
    return f"largest gradient {worst:.1e}"


@law(lambda case: case.slot == "attention" and any(trait(a, "reach") is not None for a in case.untouched.attentions))
def a_token_looks_back_exactly_as_far_as_it_says(case: Case) -> str:
    """Of one layer, a token feels those that its reach, window or chunk lets it see, and no other."""
    model, tokens = case.model(n_layer=1), case.tokens()
    last = tokens.shape[1] - 1
    for i in (last, last // 2):
        felt = influence(model, tokens, i)
        seen = visible_from(model.attentions[0], i, tokens.shape[1], case.n_source)
        farthest = int(seen.nonzero()[0])
        hidden = float(felt[~seen].max()) if not seen.all() else 0.0
        at_most(hidden, EXACT, f"token {i} feels one that it cannot see, beyond token {farthest}: look at the window")
        if farthest or i == last:  # else the text begins within its reach
            at_least(float(felt[farthest]), EXACT, f"token {i} does not feel token {farthest}: look at the window")
    return f"reach {trait(model.attentions[0], 'reach')}"


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


@law(_position_may_go)
def a_position_that_is_accepted_has_an_effect(case: Case) -> str:
    """The same weights without the position encoding give other logits."""
    tokens = case.tokens()
    moved = difference(logits_of(case.model(), tokens), logits_of(case.model(position="none"), tokens))
    way_out = "call its hooks, or leave them out of honours and the combination is refused"
    at_least(moved, SEEN, f"position {as_spec(case.config.position)['name']!r} changes nothing: {way_out}")
    return f"changes the logits by {moved:.1e}"


@law(lambda case: case.untouched.position.relative and _all_say(case, "orderless") and _all_say(case, "relative"))
def a_relative_position_sees_distances_alone(case: Case) -> str:
    """The same tokens, 17 positions later, have the same logits."""
    model, tokens = case.model(), case.tokens()
    later = Cache([None] * len(model.blocks), length=17)
    with torch.no_grad():
        moved = difference(model(tokens), model(tokens, later))
    at_most(moved, TURNED, "a shift by 17 positions moved the logits: look at the use of absolute positions")
    return f"largest change {moved:.1e}"


def _keeps_documents_apart(case: Case) -> bool:
    """Whether that is asked of it: a source seen both ways has a row to itself."""
    return case.slot in ("attention", "position") and _all_say(case, "separates_documents") and not case.n_source


@law(_keeps_documents_apart)
def packed_documents_are_separate_documents(case: Case) -> str:
    """With document_mask, documents one after another in a row have the logits that each has alone, cached or not."""
    model, worst = case.model(document_mask=True, separator=0), 0.0
    lengths = ([7, 1, 9, 7], [10, 14])
    tokens = case.tokens(24).clamp(min=1)
    for row, pieces in zip(tokens, lengths, strict=True):
        row[torch.tensor(pieces).cumsum(0) - 1] = 0  # a separator is the last token of its document
    alone = [[logits_of(model, piece[None]) for piece in row.split(n)] for row, n in zip(tokens, lengths, strict=True)]
    wanted = torch.cat([torch.cat(pieces, dim=1) for pieces in alone])
    for how, feed in {"packed": [24], "packed, fed in pieces": [5, 2, 1, 3, 13]}.items():
        cache = model.new_cache(2, 24)
        with torch.no_grad():
            got = torch.cat([model(piece, cache) for piece in tokens.split(feed, dim=1)], dim=1)
        apart = difference(wanted, got)
        at_most(apart, TURNED, f"{how}, documents see one another: look at the use of context.documents")
        worst = max(worst, apart)
    return f"largest difference {worst:.1e}"
