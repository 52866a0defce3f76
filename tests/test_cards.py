"""Cards and the list of them: read without torch, true of the classes, and honest about what is on record."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import tiny

from gptlab import cards, completion, listing, recording, registry, sources, tasks  # noqa: F401  (tasks registers)
from gptlab import list as door
from gptlab.cards import Card, Record
from gptlab.config import ModelConfig
from gptlab.cost import count

DECK = cards.deck()
MIXER = '''
from gptlab import register
from gptlab.components.attention import Attention

@register("attention", "mixer")
class Mixer(Attention):
    """Tokens mixed by a plugin. Doe et al. 2024, arXiv:2401.00001.

    Checked against nothing.
    """

    honours = frozenset()

    def __init__(self, shape, position, *, width: int = 3):
        super().__init__(shape, position)

    def forward(self, x, context, cache=None):
        return x
'''


def card(word: str) -> Card:
    found = listing.find(word, DECK)
    assert isinstance(found, Card)
    return found


def test_every_variant_has_a_card_that_says_what_its_class_says() -> None:
    assert {(c.slot, c.name) for c in DECK} >= {(s, n) for s in registry.SLOTS for n in registry.names(s)}
    for one in DECK:
        cls = registry.get(one.slot, one.name)
        assert [option.name for option in one.options] == list(registry.options(cls))
        assert set(one.refuses) == getattr(cls, "refuses", frozenset())
        assert one.reference in " ".join((cls.__doc__ or "").split())
        assert f"{one.meaning} {one.cited}".strip().removesuffix(".").startswith(one.meaning.removesuffix("."))
        if one.slot in cards.JUDGED:
            assert re.search(r"\b(19|20)\d\d\b", one.cited), f"{one.choice} cites nothing"


def test_needs_are_those_of_the_classes() -> None:
    for one in (c for c in DECK if c.slot == "attention"):
        unused = {"rotate", "terms"} - (registry.get("attention", one.name).honours or frozenset())
        assert all(hook in one.needs for hook in unused), one.needs
        assert ("position without" in one.needs) == bool(unused)
    for one in (c for c in DECK if c.slot == "position"):
        config = ModelConfig(vocab_size=5, position=recording._small("position", one.name).position)
        acts = recording.GPT(config).position.acts - {"embed"}
        assert ("attention with" in one.needs) == bool(acts)
        assert all(hook in one.needs for hook in acts)
    assert "position.original" in card("yarn").needs
    assert "vector terms" in card("fire").needs


@pytest.mark.parametrize(
    "line, parts",
    {
        "RMSNorm: a gain. Zhang & Sennrich 2019, arXiv:1910.07467.": (
            "RMSNorm: a gain.",
            "Zhang & Sennrich 2019, arXiv:1910.07467",
        ),
        "A mask. Van et al. 2016; Doe 2020.": ("A mask.", "Van et al. 2016; Doe 2020"),
        "Warmup, as in Goyal et al. 2017, arXiv:1706.02677, then flat.": (
            "Warmup, as in Goyal et al. 2017, arXiv:1706.02677, then flat.",
            "arXiv:1706.02677",
        ),
        "Bytes. All 256 of them.": ("Bytes. All 256 of them.", ""),
    }.items(),
)
def test_a_citation_is_the_sentence_that_ends_a_line(line: str, parts: tuple[str, str]) -> None:
    assert cards.cite(line) == parts


def test_a_preset_is_on_the_card_of_its_variant() -> None:
    assert card("swiglu") is card("mlp/swiglu") is card("mlp/glu")
    settings = {preset.name: preset.settings for preset in card("glu").presets}
    assert settings["reglu"] == {"activation": "relu"}


def test_the_list_comes_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom gptlab import list\nlist.main([])\n"
        "assert not {'torch', 'hydra', 'matplotlib', 'numpy'} & set(sys.modules)"
    )
    ended = tiny.finish(tiny.spawn("-c", code, cwd=tmp_path, COLUMNS="300"))
    assert ended.code == 0, ended.err
    for one in DECK:
        assert f"  {one.name} " in ended.out
        assert all(f"    {preset.name} " in ended.out for preset in one.presets)


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_the_table_is_folded_to_the_terminal_and_nothing_is_cut_off(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = tiny.call(door).out.splitlines()
    assert max(map(len, lines)) <= columns
    assert not [line for line in lines if "…" in line]
    told = "".join("".join(line.partition("│")[2].split()) for line in lines)
    for one in DECK if columns < listing.ROOM else ():
        assert all("".join(text.split()) in told for text in (one.meaning, one.cited, one.needs))


def test_in_a_pipe_each_variant_has_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = tiny.call(door).out.splitlines()
    for one in DECK:
        assert [
            line for line in lines if line.startswith(f"  {one.name} ") and one.meaning in line and one.cited in line
        ]


def test_whole_presets_are_listed_and_shown() -> None:
    out = tiny.call(door).out
    assert all(f"  {name} " in out for name in ("gpt2", "llama", "tiny", "bigram", "finetune"))
    assert [row["name"] for row in json.loads(tiny.call(door, "model", "--json").out)] == ["gpt2", "llama", "tiny"]
    assert "mlp: swiglu" in tiny.call(door, "llama").out
    assert "n_layer: 0" in tiny.call(door, "experiment/bigram").out
    assert "say tokenizer/gpt2 or model/gpt2" in tiny.call(door, "gpt2").err
    assert "Did you mean 'llama'?" in tiny.call(door, "lama").err


def test_a_slot_or_a_variant_may_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = tiny.call(door, "position").out
    assert "alibi" in out
    assert "layernorm" not in out
    out = tiny.call(door, "data/text").out
    assert "data.path" in out
    rows = json.loads(tiny.call(door, "norm", "--json").out)
    assert [row["name"] for row in rows] == registry.names("norm")


@pytest.mark.parametrize(
    "word, words", [("falsh", "'flash'"), ("none", "attention/none or position/none"), ("plugins=[./no.py]", "no file")]
)
def test_what_is_no_variant_is_refused_in_a_line(word: str, words: str) -> None:
    ended = tiny.call(door, word)
    assert ended.code == 2
    assert words in ended.err
    assert ended.err.count("\n") == 1


def test_a_plugin_has_a_card_with_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "mixer.py").write_text(MIXER)
    ended = tiny.call(door, f"plugins=[{tmp_path}/mixer.py]", "mixer")
    assert ended.code == 0, ended.err
    for words in ("Tokens mixed by a plugin.", "arXiv:2401.00001", "width", "without rotate and terms", "96,091,392",
                  "checked against: nothing", "gptlab check attention/mixer"):  # fmt: skip
        assert words in ended.out


def test_a_record_of_another_source_is_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {f"{c.slot}/{c.name}": Record(c.source, "2.13.0", laws={"a": 1}, n_cases=1) for c in DECK if c.source}
    known["norm/l2"] = dataclasses.replace(known["norm/l2"], source="of yesterday")
    monkeypatch.setattr(cards, "RECORDS", tmp_path / "records.json")
    monkeypatch.setattr(recording, "RECORDS", tmp_path / "records.json")
    recording.write(known)
    now = {f"{c.slot}/{c.name}": c for c in cards.deck()}
    assert now["norm/l2"].record is None
    assert "not recorded for this source: `gptlab check norm/l2`" in listing.text_of(now["norm/l2"])
    assert "1 on 1 cases, all held" in listing.text_of(now["norm/dyt"])


def test_a_broken_law_is_told() -> None:
    broken = "kernels_agree of attention/flash-rope"
    record = Record("", "2.13.0", laws={"kernels_agree": 3}, n_cases=3, broken=[broken])
    assert f"broken: {broken}" in listing.text_of(dataclasses.replace(card("flash"), record=record))


@pytest.mark.parametrize(
    "name, file, counts",
    [
        ("attention/flash", "attention/kernels.py", True),
        ("attention/flash", "position/yarn.py", True),
        ("attention/flash", "mlp/plain.py", True),
        ("attention/flash", "mlp/moe.py", False),
        ("norm/l2", "norm/dyt.py", False),
        ("mlp/moe", "mlp/router.py", True),
        ("position/ntk", "position/rotary.py", True),
    ],
)
def test_the_hash_is_of_what_decides_a_verdict(
    name: str, file: str, counts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, path = card(name), sources.PACKAGE / "components" / file
    source = sources.find(one.slot, one.name)
    assert source
    read = sources._read

    def edited(which: Path) -> sources._Read:
        return dataclasses.replace(read(which), text="edited") if which == path else read(which)

    monkeypatch.setattr(sources, "_read", edited)
    assert (sources.digest(one.slot, source) != one.source) == counts


def test_costs_are_those_of_gpt2_with_the_variant_in_its_slot() -> None:
    gpt2 = count(recording.GPT2)
    assert gpt2.parameters == 124_439_808
    measured = recording.measure(card("rmsnorm"))
    assert measured.costs["parameters"] == [124_439_808 - 25 * 768, 124_439_808]
    measured = recording.measure(card("conv"))
    assert "rope" not in measured.partners
    assert {"none", "learned"} <= set(measured.partners)
    assert recording.measure(card("fire")).kernels == ["math", "sdpa"]


def test_laws_are_recorded_by_running_them_and_shown_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = card("norm/none")
    record = recording.judge(one, Record(one.source, ""))
    assert record.broken == []
    assert record.laws["future_tokens_do_not_change_the_past"] == record.n_cases
    for module in (cards, recording):
        monkeypatch.setattr(module, "RECORDS", tmp_path / "records.json")
    recording.write({"norm/none": record})
    assert f"future tokens do not change the past: {record.n_cases} cases" in tiny.call(door, "norm/none").out


def test_slots_and_variants_complete() -> None:
    assert completion.candidates("gptlab list posit")[:2] == ["position", "position/alibi"]
    assert "list" in completion.candidates("gptlab li")
