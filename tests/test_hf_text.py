"""Hugging Face data sets as text: read once as a stream, on all cores, and gone on with after a kill."""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny

pytest.importorskip("datasets", reason="needs the extra: pip install 'gptlab[hf]'")
parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra: pip install 'gptlab[hf]'")

import pyarrow  # noqa: E402

from gptlab import data, encoding, workspace  # noqa: E402
from gptlab.data import Dataset, prepare  # noqa: E402
from gptlab.errors import ConfigError, DataError  # noqa: E402
from gptlab.registry import build  # noqa: E402
from gptlab.text import Scattered, hf  # noqa: E402


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache"


def texts(n: int = 700, seed: int = 0) -> list[str]:
    """Documents of few words, some of them empty, with characters of several bytes."""
    draw = random.Random(seed)
    words = [*tiny.WORDS, "naïve", "東京"]
    return [" ".join(draw.choices(words, k=draw.randrange(30))) for _ in range(n)]


def write(path: Path, rows: list[Any], column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        table = pyarrow.table({"id": list(range(len(rows))), column: rows})
        parquet.write_table(table, path, row_group_size=7)
    else:
        path.write_text("".join(json.dumps({"id": i, column: row}) + "\n" for i, row in enumerate(rows)))
    return path


def source(path: Path, **options: Any) -> Scattered:
    made: Scattered = build("data", {"name": "hf", "path": str(path), **options})
    return made


def prepared(path: Path, tokenizer: str = "byte", **options: Any) -> Dataset:
    return prepare(source(path, **{"val_fraction": 0.1, **options}), build("tokenizer", tokenizer))


def split_by_hand(rows: list[str], name: str, made: Scattered) -> str:
    """A split of the rows in the byte tokenizer's words: documents in their order, a line break between two."""
    documents = [row for row in rows if row]
    return "\n".join(row for i, row in enumerate(documents, start=1) if made.validates(i) == (name == "val"))


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_a_row_is_a_document_and_its_number_says_which_split(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a.{ending}", texts())
    made, reading = prepared(path), source(path, val_fraction=0.1)
    for name in ("train", "val"):
        assert made.tokenizer.decode(made.split(name)) == split_by_hand(texts(), name, reading)
    assert made.meta["splits"]["val"]["documents"] == pytest.approx(0.1 * len(list(filter(None, texts()))), abs=20)
    assert made.bytes_per_token("train") == 1


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    for name, seed in (("b/1.parquet", 1), ("a.parquet", 0), ("c.parquet", 2)):
        write(tmp_path / "rows" / name, texts(100, seed))
    write(tmp_path / "rows" / "notes.txt", ["not read"])
    found = [text for _, text in source(tmp_path / "rows").documents()]
    assert found == [text for seed in (0, 1, 2) for text in texts(100, seed) if text]


@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe"])
def test_any_number_of_threads_and_any_batch_give_the_same_files(
    tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet", texts())
    made = {}
    for threads, batch in ((1, 1 << 20), (1, 10), (4, 10), (4, 500), (16, 100)):
        monkeypatch.setattr(encoding, "THREADS", threads)
        monkeypatch.setattr(encoding, "BATCH", batch)
        monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / f"{threads}_{batch}"))
        made[threads, batch] = prepared(path, tokenizer).meta
    assert all(meta == made[1, 1 << 20] for meta in made.values())


class Killed(BaseException):
    """Stands for what ends a process between two instructions."""


@pytest.mark.parametrize("name", ["hf", "text"])
@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
def test_what_was_stopped_is_gone_on_with_and_gives_the_same_files(
    name: str, tokenizer: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "BATCH", 300)
    monkeypatch.setattr(data, "SAVE", 2000)
    path = write(tmp_path / ("a.parquet" if name == "hf" else "a.jsonl"), texts())

    def prepare_all(told: list[str]) -> Dataset:
        made = build("data", {"name": name, "path": str(path), "val_fraction": 0.1})
        return prepare(made, build("tokenizer", tokenizer), report=told.append)

    monkeypatch.setenv("GPTLAB_CACHE", str(tmp_path / "unbroken"))
    unbroken = prepare_all([])
    monkeypatch.setenv("GPTLAB_CACHE", str(cache))
    for after in (20, 35, 50):  # batches; each time it comes further
        with pytest.MonkeyPatch.context() as broken:
            writes = iter(range(after))
            whole = encoding.SplitFile.write

            def stopped(self: Any, *arguments: Any, writes: Any = writes, whole: Any = whole) -> None:
                if next(writes, None) is None:
                    raise Killed
                whole(self, *arguments)

            broken.setattr(encoding.SplitFile, "write", stopped)
            with pytest.raises(Killed):
                prepare_all([])
        (left,) = (cache / "tokens").iterdir()
        mark = json.loads((left / workspace.PROGRESS_FILE).read_text())["mark"]
        assert mark[0] > 0 if name == "hf" else mark is None  # what was read is not read again
    told: list[str] = []
    again = prepare_all(told)
    assert "going on after" in told[0]
    assert again.meta == unbroken.meta
    for split in ("train", "val"):
        assert np.array_equal(again.split(split), unbroken.split(split))
    assert [path.name for path in (cache / "tokens").iterdir()] == [again.directory.name]
    assert sorted(path.name for path in again.directory.iterdir()) == [
        "meta.json", "tokenizer.json", "train.bin", "val.bin",
    ]  # fmt: skip


def test_a_killed_process_is_gone_on_with_by_the_next(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "a.parquet", texts(20_000))
    code = (
        "from gptlab import data, encoding; from gptlab.registry import build\n"
        "import time; data.SAVE, encoding.BATCH = 20_000, 5_000\n"
        "write = encoding.SplitFile.write\n"
        "encoding.SplitFile.write = lambda *a: (time.sleep(SLOW), write(*a))\n"
        f"s = build('data', {{'name': 'hf', 'path': {str(path)!r}, 'val_fraction': 0.1}})\n"
        "print(data.prepare(s, build('tokenizer', 'byte'), report=print).fingerprint)"
    )
    process = tiny.spawn("-c", code.replace("SLOW", "0.02"), cwd=tmp_path)
    while not list(cache.glob("tokens/*/progress.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = tiny.finish(tiny.spawn("-c", code.replace("SLOW", "0"), cwd=tmp_path))
    whole = tiny.finish(tiny.spawn("-c", code.replace("SLOW", "0"), cwd=tmp_path, GPTLAB_CACHE=str(tmp_path / "new")))
    assert "going on after" in again.out
    assert "going on after" not in whole.out
    assert again.out.split()[-1] == whole.out.split()[-1]


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_a_mark_leads_to_the_documents_after_it(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf, "GROUP", 7)
    path = write(tmp_path / "rows" / f"a.{ending}", texts(120))
    write(tmp_path / "rows" / f"b.{ending}", texts(120, seed=1))
    reading, documents = source(path.parent), list(source(path.parent).documents())
    for n, _ in enumerate(reading.documents()):
        mark = json.loads(json.dumps(reading.mark))
        assert n - 7 < mark[0] <= n
        if n % 29 == 0:
            assert list(source(path.parent).documents(mark)) == documents[mark[0] :]


def test_a_prepared_text_is_found_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", texts())
    first = prepared(path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert prepared(path).directory == first.directory
    with pytest.raises(ConfigError, match=r"pip install 'gptlab\[hf\]'"):
        prepared(path, val_fraction=0.2)


def test_a_data_set_of_the_hub_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(**options: Any) -> str:
        return build("data", {"name": "hf", "dataset": "someone/pages", **options}).fingerprint()

    changed = [key(), key(config="small"), key(revision="v1"), key(split="test"), key(column="body")]
    assert len(set(changed)) == len(changed)
    assert key() == changed[0]


def test_the_files_of_a_data_set_are_found_by_its_library(tmp_path: Path) -> None:
    for name, seed in (("train-0.parquet", 0), ("train-1.parquet", 1), ("test-0.parquet", 2)):
        write(tmp_path / "pages" / name, texts(50, seed))
    for split, seeds in (("train", (0, 1)), ("test", (2,))):
        made = build("data", {"name": "hf", "dataset": str(tmp_path / "pages"), "split": split})
        assert [text for _, text in made.documents()] == [t for seed in seeds for t in texts(50, seed) if t]


def test_what_was_begun_is_gone_on_with_at_the_commit_it_was_begun_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest revision may be another by then."""
    old, new = "a" * 40, "b" * 40
    for commit, seed in ((old, 0), (new, 1)):
        write(tmp_path / f"pages@{commit}" / "train.parquet", texts(50, seed))
    newest = iter((old, new))

    def builder(name: str, config: str | None, revision: str | None) -> Any:
        found = sorted((tmp_path / f"pages@{revision or next(newest)}").glob("*.parquet"))
        return SimpleNamespace(config=SimpleNamespace(data_files={"train": list(map(str, found))}))

    monkeypatch.setattr("datasets.load_dataset_builder", builder)
    reading = build("data", {"name": "hf", "dataset": "someone/pages"})
    documents = reading.documents()
    for _ in range(20):
        next(documents)
    mark = json.loads(json.dumps(reading.mark))
    assert mark[0] > 0
    rest = [text for _, text in build("data", {"name": "hf", "dataset": "someone/pages"}).documents(mark)]
    assert rest == [text for text in texts(50, 0) if text][mark[0] :]


def test_a_split_that_is_none_is_named_beside_those_there_are(tmp_path: Path) -> None:
    write(tmp_path / "pages" / "train-0.parquet", texts(50))
    made = build("data", {"name": "hf", "dataset": str(tmp_path / "pages"), "split": "validation"})
    with pytest.raises(DataError, match="must be one of train, but is 'validation'"):
        list(made.documents())


def test_an_empty_piece_does_not_end_its_document() -> None:
    stream = iter([((1, "train"), text) for text in ("a", "", "b")] + [((2, "train"), "c")])
    (batch,) = encoding.batches(stream, lambda: None)
    assert ["".join(document) for document in batch.documents] == ["ab", "c"]


def test_the_hub_out_of_reach_is_one_line(tmp_path: Path) -> None:
    made = build("data", {"name": "hf", "dataset": "someone/pages"})
    with pytest.raises(DataError, match="someone/pages cannot be read") as caught:
        prepare(made, build("tokenizer", "byte"))
    assert "\n" not in str(caught.value)


def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 not at all")
    rows = write(tmp_path / "a.parquet", texts(10))
    lines = write(tmp_path / "a.jsonl", texts(10))
    mixed = write(tmp_path / "mixed" / "a.parquet", texts(10)).parent
    write(mixed / "b.jsonl", texts(10))
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("give one", {}),
        ("give one", {"dataset": "x", "path": str(rows)}),
        ("leave them out", {"config": "x", "path": str(rows)}),
        ("above 0 and below 1", {"path": str(rows), "val_fraction": 0.0}),
        ("mend the path", {"path": str(tmp_path / "none.parquet")}),
        ("mend the path", {"path": str(tmp_path / "empty")}),
        ("holds both", {"path": str(mixed)}),
        ("Parquet|parquet", {"path": str(broken)}),
        ("one of id, text, but is 'body'", {"path": str(rows), "column": "body"}),
        ("body", {"path": str(lines), "column": "body"}),
        ("'id' is int", {"path": str(rows), "column": "id"}),
        ("val gets none", {"path": str(write(tmp_path / "one.parquet", ["a row"]))}),
    ]
    for message, options in wrong:
        with pytest.raises((ConfigError, DataError), match=message) as caught:
            prepare(build("data", {"name": "hf", **options}), build("tokenizer", "byte"))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line, said",
    [
        ('{"text": "a\\ud800b"}', "half a surrogate pair in 'text'"),
        ('{"text": ', "must be a JSON object"),
        ('"text"', "must be a JSON object, but line 10 of .* is str"),
        ('{"body": "a"}', "data.column must be one of body, but is 'text'"),
        ('{"text": ["a"]}', "data.column must hold text, but 'text' is list"),
        ('{"text": "a\udcff"}', "must be a JSON object"),
    ],
)
def test_a_line_without_text_is_named_with_its_file(
    line: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf, "GROUP", 4)
    path = write(tmp_path / "rows" / "a.jsonl", texts(8))
    path.write_bytes(path.read_bytes() + b"\n" + line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(DataError, match=said) as caught:
        prepare(source(path.parent), build("tokenizer", "byte"))
    assert f"line 10 of {path}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_endings_may_be_in_capitals(tmp_path: Path) -> None:
    for ending in ("parquet", "jsonl"):
        path = write(tmp_path / f"a.{ending}", texts(20))
        loud = path.rename(tmp_path / f"A.{ending.upper()}")
        assert [text for _, text in source(loud).documents()] == [text for text in texts(20) if text]


def test_a_training_reads_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.parquet", texts())
    words = ("data=hf", "data.path=a.parquet", "data.val_fraction=0.2", "tokenizer=byte", "run_dir=r")
    ended = tiny.run(*words, "trainer.steps=3", "trainer.sample_every=0")
    assert ended.code == 0, ended.err
    assert tiny.summary("r")["step"] == 3
