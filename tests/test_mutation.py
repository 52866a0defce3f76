"""The suite is tested by planted faults: each still fits its file, a few are caught here, the docs say the score."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gptlab import registry
from gptlab.conformance import LAWS

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "mutation_score.py"
DOCS = (ROOT / "docs" / "conformance.md").read_text("utf-8")
CHEAP = {"dyt-alpha-not-trained": "laws", "dyt-alpha-outside": "tests"}


@pytest.fixture(scope="module")
def score() -> Any:
    """The script, as a module."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import mutation_score
    finally:
        sys.path.pop(0)
    return mutation_score


def test_every_fault_fits_its_file_once_and_leaves_it_python(score: Any) -> None:
    for fault in score.read_faults():
        ast.parse(fault.planted((ROOT / fault.file).read_text("utf-8")))


def test_every_fault_names_checks_that_there_are(score: Any) -> None:
    faults = score.read_faults()
    assert [id for id, n in Counter(fault.id for fault in faults).items() if n > 1] == []
    for fault in faults:
        assert fault.laws or fault.tests, fault.id
        for word in fault.laws:
            slot, _, rest = word.partition("/")
            assert rest.partition("-")[0] in registry.names(slot), word
        for words in fault.tests:
            assert (ROOT / words.split()[0]).is_file(), words


def test_a_fault_that_no_longer_fits_is_named(score: Any) -> None:
    fault = score.Fault("some-id", "some.py", "a fault", old="x + 1", new="x + 2")
    assert fault.planted("y = x + 1") == "y = x + 2"
    with pytest.raises(ValueError, match=r"some-id: its old text is 2 times in some\.py"):
        fault.planted("y = x + 1\nz = x + 1")


@pytest.mark.slow
def test_planted_faults_are_caught_by_what_should_catch_them(tmp_path: Path) -> None:
    arguments = ["--jobs", "1", "--json", str(tmp_path / "outcomes.json"), "--only", *CHEAP]
    ended = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    outcomes = json.loads((tmp_path / "outcomes.json").read_text())
    assert {outcome["id"]: next(iter(outcome["caught"])) for outcome in outcomes} == CHEAP
    assert f"Mutation score: {len(CHEAP)} of {len(CHEAP)} (100.0%)." in ended.stdout


def test_the_docs_list_every_law_with_its_sentence() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|$", DOCS, re.MULTILINE)
    assert dict(rows) == {name: law.meaning for name, law in LAWS.items()}


def test_the_docs_state_the_score_of_the_faults_that_there_are(score: Any) -> None:
    stated = re.search(r"(\d+) of (\d+) \(([\d.]+)%\) are caught", DOCS)
    assert stated, "docs/conformance.md states the score"
    caught, planted = int(stated[1]), int(stated[2])
    assert planted == len(score.read_faults())
    assert float(stated[3]) == round(100 * caught / planted, 1) >= 95
