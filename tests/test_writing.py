"""Text from a run: pieces that no later token changes, stop strings, and one line for what cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import tiny

from gptlab import report, rundir, sample, sampling
from gptlab.tokenizer import ByteTokenizer, Tokenizer
from gptlab.writing import continuations


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with rope and characters, and beside it one with learned positions."""
    folder = tmp_path_factory.mktemp("written")
    text = tiny.write_text(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_curve", lambda run_dir, ruler: run_dir)
        for name, position in (("rope", "rope"), ("learned", "learned")):
            words = [f"data.path={text}", f"run_dir={folder / name}", f"position={position}", "trainer.steps=3"]
            assert tiny.run(*words).code == 0
    return folder / "rope"


def pieces(text: str | bytes, n: int = 1, stop: str | None = None) -> list[tuple[int, str]]:
    """What is streamed when the bytes of a text are the tokens."""
    ids = list(text.encode() if isinstance(text, str) else text)
    return list(continuations(ByteTokenizer(), iter([[i] * n for i in ids]), n, stop))


def joined(streamed: Sequence[tuple[int, str]], which: int = 0) -> str:
    return "".join(piece for i, piece in streamed if i == which)


@pytest.mark.parametrize("text", ["plain", "naïve", "日本語", "👩‍🚀!", "ab€"])
def test_a_character_of_several_tokens_is_streamed_whole(text: str) -> None:
    streamed = pieces(text)
    assert joined(streamed) == text
    assert "\N{REPLACEMENT CHARACTER}" not in joined(streamed)


def test_bytes_that_are_no_text_show_as_replacement_characters_at_the_end() -> None:
    assert joined(pieces(b"ab\xe2\x82")) == "ab\N{REPLACEMENT CHARACTER}"
    assert joined(pieces(b"\xffab")) == "\N{REPLACEMENT CHARACTER}ab"


@pytest.mark.parametrize(
    "text, stop, left",
    [
        ("one. two", ".", "one"),
        ("the end.\n\nmore", "\n\n", "the end."),
        ("aab aabaac", "aac", "aab aab"),
        ("no stop at all", "xyz", "no stop at all"),
        ("almost xy", "xyz", "almost xy"),
        ("stop", "stop", ""),
        ("naïve", "ï", "na"),
    ],
)
def test_a_text_ends_before_its_stop_string_across_tokens(text: str, stop: str, left: str) -> None:
    assert joined(pieces(text, stop=stop)) == left


def test_nothing_of_a_stop_string_is_ever_shown() -> None:
    shown = ""
    for _, piece in pieces("abcabd", stop="abd"):
        shown += piece
        assert "abcabd".startswith(shown)
        assert not shown.endswith("abcab")
    assert shown == "abc"


def test_texts_side_by_side_stop_each_on_its_own() -> None:
    rows = iter([[ord("a"), ord("x")], [ord("."), ord("y")], [ord("b"), ord(".")], [ord("c"), ord("z")]])
    streamed = list(continuations(ByteTokenizer(), rows, 2, "."))
    assert (joined(streamed, 0), joined(streamed, 1)) == ("a", "xy")
    assert next(rows, None) is not None, "nothing more is drawn once all have stopped"


def test_a_document_ends_a_text() -> None:
    class WithEnd(ByteTokenizer):
        @property
        def end_of_text(self) -> int | None:
            return 0

    tokens: Iterator[list[int]] = iter([[ord("a")], [0], [ord("b")]])
    tokenizer: Tokenizer = WithEnd()
    assert joined(list(continuations(tokenizer, tokens, 1))) == "a"


def write(run: Path, *flags: str) -> tiny.Ended:
    return tiny.call(sample, str(run), "--device", "cpu", *flags)


def test_one_text_begins_with_its_prompt_and_has_as_many_tokens_as_asked(run: Path) -> None:
    ended = write(run, "--prompt", "the ", "--tokens", "40")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("the ")
    assert len(ended.out) == 4 + 40 + 1


def texts(out: str) -> list[str]:
    """The texts of an output with several, without the lines that number them."""
    return [part.partition(" ---\n")[2] for part in out.split("--- ")[1:] if " of " in part or part]


def test_samples_do_not_depend_on_how_many_are_drawn_side_by_side(run: Path) -> None:
    alone = write(run, "--samples", "3", "--batch", "1", "--tokens", "30", "--seed", "5").out
    together = write(run, "--samples", "3", "--batch", "3", "--tokens", "30", "--seed", "5").out
    assert alone == together
    assert alone.count("--- ") == 3
    single = write(run, "--tokens", "30", "--seed", "6").out
    assert single in alone


def test_the_seed_decides_and_greedy_does_not_draw(run: Path) -> None:
    def one(*flags: str) -> str:
        return write(run, "--tokens", "30", *flags).out

    assert one("--seed", "1") == one("--seed", "1") != one("--seed", "2")
    assert one("--greedy", "--seed", "1") == one("--temperature", "0", "--seed", "2") == one("--top-k", "1")


def test_compiled_steps_write_the_same(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "compiled_logits", lambda device_type: sampling.next_logits)
    monkeypatch.setattr(sampling, "has_compiler", lambda device: True)
    plain, compiled = write(run, "--tokens=30", "--samples=2"), write(run, "--tokens=30", "--samples=2", "--compile")
    assert (compiled.code, compiled.out) == (0, plain.out)
    monkeypatch.setattr(sampling, "has_compiler", lambda device: False)
    told = write(run, "--tokens=3", "--samples=3", "--batch=1", "--compile")
    assert told.err.count("steps are not compiled") == 1


def test_rope_goes_on_past_block_size_and_learned_refuses_in_one_line(run: Path) -> None:
    assert write(run, "--tokens", "50").code == 0
    ended = write(run.with_name("learned"), "--tokens", "50", "--prompt", "the")
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert "ends at 16 tokens" in ended.err
    assert write(run.with_name("learned"), "--tokens", "14", "--prompt", "the").code == 0


REFUSED = {
    "--temperature -1": "temperature must be 0 or more",
    "--top-p 2": "top-p must be in (0, 1]",
    "--top-k 0": "top-k must be at least 1",
    "--min-p -1": "min-p must be in [0, 1]",
    "--tokens 0": "--tokens must be at least 1",
    "--samples 0": "--samples must be at least 1",
    "--batch 0": "--batch must be at least 1",
    "--prompt ÑÑ": "Character 'Ñ' at position 0",
    "--device cuda:99": "is not on this machine",
    "--stop=": "--stop must hold at least one character",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_a_flag_that_cannot_be_is_one_line(flags: str, run: Path) -> None:
    ended = tiny.call(sample, str(run), *flags.split())
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1), ended.err
    assert REFUSED[flags] in ended.err


def test_no_such_run_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, told in (("nowhere", "holds a config.yaml, but nowhere does not"), ("latest", "There is no run under")):
        ended = tiny.call(sample, name)
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert told in ended.err


def test_load_gives_the_model_in_eval_mode_and_its_tokenizer(run: Path) -> None:
    import gptlab

    model, tokenizer = gptlab.load(run)
    assert not model.training
    assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"
    assert model.config.vocab_size == tokenizer.vocab_size


def test_a_config_that_was_damaged_is_one_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: [")
    with pytest.raises(rundir.CheckpointError, match="cannot be read") as refused:
        rundir.load(tmp_path)
    assert "\n" not in str(refused.value)
