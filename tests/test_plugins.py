"""Variants from outside: a good one keeps every law, each flawed one breaks the law that is about its flaw."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gptlab import ModelConfig, plugins, registry
from gptlab.check import main as check_door
from gptlab.conformance import LAWS, Case, LawBroken, cases_for, check, judge
from gptlab.errors import ConfigError
from gptlab.model import GPT

HEAD = """
import torch
import torch.nn as nn
import torch.nn.functional as F
from gptlab import register
from gptlab.components.attention import Attention
"""

GOOD = (
    HEAD
    + '''
@register("attention", "tried_mixer")
class Mixer(Attention):
    """Linear attention without a normalizer. Katharopoulos et al. 2020, arXiv:2006.16236."""

    honours = frozenset({"rotate"})
    orderless = True

    def __init__(self, shape, position, *, power: float = 1.0):
        super().__init__(shape, position)
        self.n_head, self.position, self.power = shape.n_head, position, power
        self.qkv = nn.Linear(shape.n_embd, 3 * shape.n_embd, bias=False)
        self.gain = nn.Parameter(torch.randn(shape.n_embd))
        self.proj = nn.Linear(shape.n_embd, shape.n_embd, bias=False)

    def forward(self, x, context, cache=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.position.rotate(q, k, context.positions)
        seen = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        y = (q @ k.transpose(-2, -1)).tril() @ v / seen**self.power
        return self.proj(self.gain * y.transpose(1, 2).flatten(2))
'''
)


def flawed(forward: str, more: str = "", options: str = "") -> str:
    """A running mean of values, with one line of its forward replaced."""
    return (
        HEAD
        + f'''
@register("attention", "flawed")
class Flawed(Attention):
    """A running mean of values, with a flaw. Nobody 2025."""

    honours = frozenset()
    orderless = True

    def __init__(self, shape, position{options}):
        super().__init__(shape, position)
        self.v = nn.Linear(shape.n_embd, shape.n_embd)
        {more or "pass"}

    def forward(self, x, context, cache=None):
        n = x.shape[1]
        past = torch.ones(n, n).tril()
        mean = lambda v: (past / past.sum(1, keepdim=True)) @ v
        return {forward}
'''
    )


FLAWS = {
    "future_tokens_do_not_change_the_past": flawed("self.v(x).flip(1)"),
    "no_gradient_flows_from_the_past_to_the_future": flawed("mean(self.v(x)) + 0.1 * self.v(x).mean(1, keepdim=True)"),
    "sequences_in_a_batch_do_not_talk": flawed("mean(self.v(x)) + 0.1 * self.v(x).mean(0, keepdim=True)"),
    "without_position_the_order_of_the_past_does_not_matter": flawed("self.v(F.pad(x, (0, 0, 1, 0))[:, :-1])"),
    "a_token_looks_back_exactly_as_far_as_it_says": flawed("mean(self.v(x))", more="self.reach = 4"),
    "cached_is_uncached": flawed("mean(self.v(x)) * n"),
    "parameters_are_created_at_construction": flawed("nn.Linear(32, 32)(mean(self.v(x)))"),
    "evaluation_is_repeatable": flawed("mean(self.v(x)) * torch.rand(())"),
    "every_parameter_learns_or_is_declared_inert": flawed("mean(self.v(x))", more="self.unused = nn.Linear(4, 4)"),
    "every_option_changes_the_output": flawed("mean(self.v(x))", options=", *, width: int = 3"),
    "the_state_dict_holds_everything": flawed("mean(self.v(x)) * self.gate", more="self.gate = torch.randn(32)"),
    "the_same_seed_gives_the_same_bits": flawed(
        "mean(self.v(x)) * self.gate", more="torch.seed(); self.gate = nn.Parameter(torch.randn(32))"
    ),
    "the_loss_compiles_whole_and_once": flawed("mean(self.v(x)) if float(x.sum()) > 1e9 else mean(self.v(x)) * 2"),
    "bf16_stays_near_the_definition": flawed("mean((self.v(x) + 300) - 300)"),
    "a_position_that_is_accepted_has_an_effect": flawed("mean(self.v(x))").replace(
        "frozenset()", 'frozenset({"rotate", "terms"})'
    ),
    "packed_documents_are_separate_documents": flawed("mean(self.v(x))").replace(
        "orderless = True", "orderless = separates_documents = True"
    ),
    "the_gradient_is_the_slope_of_the_loss": flawed("mean(self.v(x).detach()) + self.v(x)"),
    "initial_activations_are_of_sane_size": flawed("mean(self.v(x)) * 1e6"),
    "declared_costs_are_counted_costs": flawed("mean(self.v(x))", more="self.cached = 7"),
    "new_sizes_compile_no_new_graph": flawed("mean(self.v(x)) * (-1 if n == 13 else 1)"),
    "a_relative_position_sees_distances_alone": flawed("mean(self.v(x)) * (1 + context.positions[..., None])"),
}


def _load(folder: Path, source: str, name: str = "mine.py") -> str:
    path = folder / name
    path.write_text(source)
    (loaded,) = plugins.load([str(path)])
    return loaded


def _first_case(name: str) -> Case:
    return cases_for("attention", name)[0]


def test_a_good_mixer_keeps_every_law(tmp_path: Path) -> None:
    assert len(GOOD.splitlines()) < 40
    _load(tmp_path, GOOD)
    verdicts = list(check([("attention", "tried_mixer")]))
    about_others = {
        "kernels_agree", "a_token_looks_back_exactly_as_far_as_it_says", "packed_documents_are_separate_documents",
    }  # fmt: skip
    assert {v.law for v in verdicts} >= set(LAWS) - about_others
    assert [v for v in verdicts if not v.holds] == []


@pytest.mark.parametrize("law", FLAWS)
def test_a_flaw_is_found_by_the_law_about_it(law: str, tmp_path: Path) -> None:
    _load(tmp_path, FLAWS[law])
    case = next(case for case in cases_for("attention", "flawed") if LAWS[law].applies(case))
    with pytest.raises(LawBroken) as broken:
        LAWS[law].run(case)
    assert "\n" not in str(broken.value)


def test_the_mean_that_the_flaws_are_planted_in_is_sound(tmp_path: Path) -> None:
    _load(tmp_path, flawed("mean(self.v(x))"))
    assert [v for v in check([("attention", "flawed")]) if not v.holds] == []


def test_a_mixer_that_tells_order_by_itself_is_not_held_to_having_none(tmp_path: Path) -> None:
    shifted = flawed("self.v(F.pad(x, (0, 0, 1, 0))[:, :-1]) + x").replace("orderless = True", "orderless = False")
    by_position = flawed("mean(self.v(x)) * (1 + context.positions[..., None])").replace(
        "orderless = True", "reach = None"
    )
    for name, source in (("shifted", shifted), ("by_position", by_position)):
        _load(tmp_path, source.replace('"flawed"', f'"{name}"').replace("class Flawed", f"class {name}"), f"{name}.py")
        assert [v for v in check([("attention", name)]) if not v.holds] == []


def test_a_plain_module_that_says_nothing_of_itself_is_held_to_the_laws_and_decoded(tmp_path: Path) -> None:
    plain = (
        flawed("mean(self.v(x))")
        .replace("(Attention)", "(nn.Module)")
        .replace("__init__(shape, position)", "__init__()")
    )
    for said in ("honours = frozenset()", "orderless = True"):
        plain = plain.replace(said, "pass")
    _load(tmp_path, plain)
    verdicts = list(check([("attention", "flawed")]))
    assert {v.law for v in verdicts} >= {"cached_is_uncached", "future_tokens_do_not_change_the_past"}
    assert [v for v in verdicts if not v.holds] == []
    for block in registry.names("block"):
        assert GPT(ModelConfig(vocab_size=5, attention="flawed", block=block)).new_cache(1, 8).layers


def test_every_law_has_a_flaw_that_breaks_it() -> None:
    assert set(LAWS) - set(FLAWS) == {"kernels_agree"}  # breaking that one takes a kernel, not a mixer


def test_a_variant_that_raises_has_broken_the_law(tmp_path: Path) -> None:
    _load(tmp_path, flawed("self.w(x)"))
    verdict = judge(_first_case("flawed"), LAWS["evaluation_is_repeatable"])
    assert not verdict.holds
    assert "no attribute 'w'" in verdict.note


def test_the_door_exits_1_for_a_broken_law_and_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.py"
    path.write_text(FLAWS["sequences_in_a_batch_do_not_talk"])
    with pytest.raises(SystemExit) as end:
        check_door([f"plugins=[{path}]", "--json"])
    assert end.value.code == 1
    printed = capsys.readouterr().out
    assert '"law": "sequences_in_a_batch_do_not_talk"' in printed
    assert '"holds": false' in printed


def test_a_plugins_own_draws_follow_from_the_seed_alone(tmp_path: Path) -> None:
    _load(tmp_path, GOOD)
    one, two = (
        GPT(ModelConfig(vocab_size=v, n_layer=2, n_head=2, n_embd=8, attention="tried_mixer", mlp=mlp), seed=3)
        for v, mlp in ((5, "plain"), (7, "glu"))
    )
    for a, b in zip(one.blocks, two.blocks, strict=True):
        assert torch.equal(a.attention.gain, b.attention.gain)
    assert not torch.equal(one.blocks[0].attention.gain, one.blocks[1].attention.gain)


BROKEN = {
    "a file that is not there": (None, "there is no file"),
    "a syntax error": ("class :", "SyntaxError"),
    "a missing import": ("import nothing_of_that_name", "nothing_of_that_name"),
    "a slot that is none": (
        GOOD.replace('"attention", "tried_mixer"', '"attenton", "tried_mixer"'),
        "Did you mean 'attention'?",
    ),
    "an option without a type": (GOOD.replace("power: float = 1.0", "power=1.0"), "option 'power' needs a type"),
    "options by **": (GOOD.replace("*, power: float = 1.0", "**power"), "options are written out by name"),
    "a name that is taken": (GOOD.replace('"tried_mixer"', '"flash"'), "rename one of them"),
    "a name that is no word": (GOOD.replace('"tried_mixer"', '"my mixer"'), "a word of letters"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_plugin_that_cannot_be_is_one_clear_line(what: str, tmp_path: Path) -> None:
    source, told = BROKEN[what]
    path = tmp_path / "mine.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(ConfigError) as refused:
        plugins.load([str(path)])
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_plugin_may_be_loaded_twice(tmp_path: Path) -> None:
    first = _load(tmp_path, GOOD)
    assert plugins.load([first]) == [first]


def test_a_module_is_a_plugin_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outside_mixer.py").write_text(GOOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert plugins.load(["outside_mixer"]) == ["outside_mixer"]
    assert "tried_mixer" in registry.names("attention")


@pytest.mark.parametrize("words", [[], ["flsh"], ["none"]])
def test_checking_nothing_or_what_is_no_variant_is_refused_in_one_line(words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        check_door(words)
    assert "\n" not in str(refused.value)
