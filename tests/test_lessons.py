"""docs/learn/ says what its sources say and its commands can be given; the laws of attention hold as it tells them."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import gptlab.material  # registers texts and tasks, before a test may forget them
import gptlab.optimizer
import gptlab.schedule  # noqa: F401
from gptlab import ModelConfig, cli, conf_dir, registry
from gptlab.components.context import Context, Encoded
from gptlab.components.shape import Shape
from gptlab.config import from_dict
from gptlab.conformance.probes import influence
from gptlab.model import GPT
from gptlab.studies import settings

ROOT = Path(__file__).resolve().parent.parent
LEARN = ROOT / "docs" / "learn"
PAGES = sorted(LEARN.glob("*.md"))
T = 12


def load(path: Path) -> Any:
    """A file that is no part of the package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LESSONS = load(ROOT / "scripts" / "write_lessons.py")
ENGINE = load(LEARN / "autograd.py")


def commands(program: str) -> list[list[str]]:
    """The arguments of each time that a page calls a program."""
    shell = [block for path in PAGES for block in re.findall(r"```sh\n(.*?)```", path.read_text("utf-8"), re.DOTALL)]
    lines = [line for line in "\n".join(shell).splitlines() if line.startswith(f"{program} ")]
    return [shlex.split(line, comments=True)[len(program.split()) :] for line in lines]


# The pages


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_shows_its_sources_as_they_are_today(path: Path) -> None:
    text = path.read_text("utf-8")
    assert LESSONS.filled(text) == text, f"{path.name} is old: run python scripts/write_lessons.py"
    assert text.count("<!-- from ") == text.count("<!-- end -->") == len(LESSONS.MARKED.findall(text))


def test_a_page_that_asks_for_what_there_is_not_is_told() -> None:
    with pytest.raises(LookupError, match=r"tests/test_lessons\.py has no load\.nothing"):
        LESSONS.filled("<!-- from tests/test_lessons.py load.nothing -->\n<!-- end -->")


def test_a_method_is_shown_with_its_decorators_and_without_its_indent() -> None:
    shown = LESSONS.excerpt(ROOT / "gptlab" / "config.py", "TrainerConfig.__post_init__")
    assert shown.startswith("```python\ndef __post_init__(self) -> None:\n    self.compile")
    assert LESSONS.excerpt(ROOT / "gptlab" / "config.py", "LoraConfig").startswith(
        "```python\n@dataclass\nclass LoraConfig"
    )


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text("utf-8")):
        assert (LEARN / target).exists(), target


@pytest.mark.parametrize("words", commands("gptlab train"), ids=" ".join)
def test_every_training_composes_and_builds(words: list[str]) -> None:
    config = from_dict(cli.compose(words))
    with torch.device("meta"):
        GPT(
            ModelConfig(
                **{**vars(config.model), "vocab_size": 65, "separator": 0 if config.model.document_mask else None}
            )
        )


@pytest.mark.parametrize("words", commands("gptlab study"), ids=" ".join)
def test_every_study_can_be_asked_for(words: list[str]) -> None:
    assert len(settings.read(words).study.arms) > 1


def test_every_command_for_tests_finds_some() -> None:
    names = re.findall(r"^def (test_\w+)", Path(__file__).read_text("utf-8"), re.MULTILINE)
    inline = re.findall(
        r"pytest -n 0 tests/test_lessons\.py(?: -k (\w+))?", "".join(p.read_text("utf-8") for p in PAGES)
    )
    assert {"average", "engine"} <= {*inline}
    for word in inline:
        assert any(word in name for name in names), word


def test_every_rung_is_an_experiment_an_arm_of_both_studies_and_a_page() -> None:
    rungs = sorted(path.stem for path in (conf_dir.find() / "experiment").glob("ladder_*.yaml"))
    assert len(rungs) == 12
    assert [f"{name.removeprefix('ladder_').replace('_', '-')}.md" for name in rungs] == [
        path.name for path in PAGES if path.name[0].isdigit()
    ]
    for study in ("ladder", "ladder_names"):
        arms = settings.read([f"study={study}"]).study.arms
        assert list(arms.values()) == [[f"experiment={name}"] for name in rungs]
        assert list(arms) == [re.sub(r"ladder_\d+_", "", name) for name in rungs]


def test_a_rung_is_the_one_before_it_and_what_its_file_says() -> None:
    """So that what a page shows is all that is new."""
    folder = conf_dir.find() / "experiment"
    files = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(folder.glob("ladder_*.yaml"))}
    for before, after in zip(list(files)[1:9], list(files)[2:10], strict=True):  # norm is the last that builds so
        old, new = (cli.compose([f"experiment={rung}"])["model"] for rung in (before, after))
        changed = {key for key, value in new.items() if value != old[key]}
        written = set(files[after].get("model") or {})
        overridden = [key for entry in files[after]["defaults"] if isinstance(entry, dict) for key in entry]
        written |= {key.rpartition("/")[2].removeprefix("override ") for key in overridden}
        assert changed == written, after


# The laws of attention


def a_model(attention: Any = "vanilla", position: str = "none", n_layer: int = 1) -> GPT:
    """Attention alone between two ends, with weights large enough to see every effect."""
    sizes = {"vocab_size": 29, "block_size": T, "n_layer": n_layer, "n_head": 2, "n_embd": 16, "init_std": 0.5}
    return GPT(ModelConfig(**sizes, attention=attention, position=position, mlp="none")).double().eval()


def some_tokens(n_rows: int = 1) -> Tensor:
    """Random ids, (n_rows, T)."""
    return torch.randint(29, (n_rows, T), generator=torch.Generator().manual_seed(0))


def who_hears_whom(model: GPT) -> Tensor:
    """[i, j]: whether what token i comes to depends on token j."""
    return torch.stack([influence(model, some_tokens(), i) > 0 for i in range(T)])


@pytest.mark.parametrize(
    "attention, hears",
    [
        ("vanilla", lambda ago: ago >= 0),
        ({"name": "vanilla", "window": 3}, lambda ago: (ago >= 0) & (ago < 3)),
        ("mean", lambda ago: ago >= 0),
        ("window_mlp", lambda ago: (ago >= 0) & (ago < 3)),
        ({"name": "conv", "dilation": 4}, lambda ago: (ago == 0) | (ago == 4)),
    ],
    ids=["vanilla", "window", "mean", "window_mlp", "conv"],
)
def test_attention_is_communication_over_a_directed_graph(attention: Any, hears: Callable[[Tensor], Tensor]) -> None:
    edges = hears(torch.arange(T)[:, None] - torch.arange(T))
    assert torch.equal(who_hears_whom(a_model(attention)), edges)
    along_two = edges.int() @ edges.int() > 0
    assert torch.equal(who_hears_whom(a_model(attention, n_layer=2)), along_two)


@torch.no_grad()
def test_attention_has_no_notion_of_order_by_itself() -> None:
    tokens = some_tokens()
    shuffled = torch.cat((tokens[:, :-1].flip(1), tokens[:, -1:]), dim=1)
    for position, told in {"none": False, "rope": True, "learned": True, "alibi": True}.items():
        model = a_model(position=position)
        moved = (model(tokens) - model(shuffled))[:, -1].abs().max()
        assert (moved > 1e-3) if told else (moved < 1e-10)


@torch.no_grad()
def test_sequences_do_not_talk_to_each_other() -> None:
    model, tokens = a_model(position="rope"), some_tokens(n_rows=3)
    other = tokens.clone()
    other[1] = (other[1] + 7) % 29
    moved = (model(tokens) - model(other)).abs().amax(dim=(1, 2))
    assert moved[1] > 1e-3
    assert moved[[0, 2]].max() < 1e-12


def test_masked_or_not_is_one_line() -> None:
    masked, unmasked = (a_model({"name": "vanilla", "causal": causal}, position="rope") for causal in (True, False))
    assert torch.equal(who_hears_whom(masked), torch.ones(T, T).tril().bool())
    assert who_hears_whom(unmasked).all()


@torch.no_grad()
def test_self_and_cross_differ_in_where_keys_and_values_come_from() -> None:
    shape = Shape(n_embd=16, n_head=2, block_size=T)
    itself, cross = (
        registry.build("attention", what, shape, registry.build("position", "none", shape)).eval()
        for what in ({"name": "vanilla", "causal": False}, "cross")
    )
    cross.load_state_dict(itself.state_dict())
    x, other, nowhere = torch.randn(1, T, 16), torch.randn(1, 5, 16), torch.arange(T)[None]
    of_itself = cross(x, Context(nowhere, memory=Encoded(x)))
    torch.testing.assert_close(of_itself, itself(x, Context(nowhere)))
    assert (cross(x, Context(nowhere, memory=Encoded(other))) - of_itself).abs().max() > 1e-3


@pytest.mark.parametrize("size", [16, 64, 256])
def test_scores_have_variance_1_because_they_are_divided_by_the_root_of_the_head_size(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    q, k = torch.randn(2, 20_000, size, generator=generator).unbind()
    scores = (q * k).sum(-1)
    (attention,) = GPT(ModelConfig(vocab_size=29, n_layer=1, n_head=1, n_embd=size)).attentions
    scale = float(attention.plan.scale)
    assert float(scores.var()) == pytest.approx(size, rel=0.1)
    assert float((scale * scores).var()) == pytest.approx(1, rel=0.1)
    among_32 = scores.unflatten(0, (-1, 32))
    loudest, loudest_scaled = (each.softmax(-1).amax(-1).mean() for each in (among_32, scale * among_32))
    assert loudest > 0.4  # one of 32 is nearly all that is heard
    assert loudest_scaled < 0.25


def by_a_loop(x: Tensor) -> Tensor:
    averages = [x[: t + 1].mean(dim=0) for t in range(len(x))]
    return torch.stack(averages)


def by_a_matrix(x: Tensor) -> Tensor:
    triangle = torch.ones(len(x), len(x)).tril()
    weights = triangle / triangle.sum(dim=1, keepdim=True)
    return weights @ x


def by_a_softmax(x: Tensor) -> Tensor:
    future = torch.ones(len(x), len(x)).triu(1).bool()
    scores = torch.zeros(len(x), len(x)).masked_fill(future, float("-inf"))
    return scores.softmax(dim=1) @ x


@torch.no_grad()
def test_three_forms_of_the_average_are_one_and_are_what_the_rung_computes(float64: None) -> None:
    x = torch.randn(T, 16)
    for form in (by_a_matrix, by_a_softmax):
        torch.testing.assert_close(form(x), by_a_loop(x), rtol=0, atol=1e-14)
    shape = Shape(n_embd=16, n_head=1, block_size=T)
    mean = registry.build("attention", "mean", shape, registry.build("position", "none", shape))
    for linear in (mean.v, mean.proj):
        linear.weight.copy_(torch.eye(16))
    torch.testing.assert_close(mean(x[None], Context(torch.arange(T)[None]))[0], by_a_loop(x), rtol=0, atol=1e-14)


# The engine


def test_the_engine_knows_the_slope_of_everything_that_it_can_do(float64: None) -> None:
    values = [0.7, -1.3, 0.4]

    def formula(a: Any, b: Any, c: Any) -> Any:
        shared = a * b + 2.0 * c
        return (shared.exp() / (1.5 - c) + (a * a).log()).tanh() * shared - (b + 0.1).relu() - (a + 3.0).relu() + c**3.0

    ours = [ENGINE.Number(value) for value in values]
    theirs = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]
    (end, wanted) = formula(*ours), formula(*theirs)
    end.backward()
    wanted.backward()
    assert end.value == pytest.approx(wanted.item(), rel=1e-14)
    for number, tensor in zip(ours, theirs, strict=True):
        assert number.grad == pytest.approx(float(tensor.grad), rel=1e-12)  # type: ignore[arg-type]


def test_the_engine_trains_a_small_mlp_to_the_end_with_the_gradients_of_torch(float64: None) -> None:
    learner = ENGINE.MLP([2, 8, 1])
    inputs = torch.tensor([x for x, _ in ENGINE.XOR], dtype=torch.float64)
    wanted = torch.tensor([y for _, y in ENGINE.XOR], dtype=torch.float64)
    losses = []
    for _ in range(300):
        layers = [
            torch.tensor([[w.value for w in unit] for unit in layer]).requires_grad_() for layer in learner.layers
        ]
        hidden = torch.tanh(inputs @ layers[0][:, :-1].T + layers[0][:, -1])
        outputs = hidden @ layers[1][:, :-1].T + layers[1][:, -1]
        loss = (outputs[:, 0] - wanted).square().mean()
        loss.backward()
        losses.append(ENGINE.descend(learner, ENGINE.XOR, rate=0.1))
        assert losses[-1] == pytest.approx(loss.item(), rel=1e-12)
        found = [torch.tensor([[w.grad for w in unit] for unit in layer]) for layer in learner.layers]
        for ours, theirs in zip(found, layers, strict=True):
            torch.testing.assert_close(ours, theirs.grad, rtol=1e-9, atol=1e-13)
    assert losses[0] > 0.5
    assert losses[-1] < 1e-3
