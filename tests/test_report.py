"""The curve of a run: readable whatever the metrics hold."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from gptlab.errors import DataError
from gptlab.report import GAP, draw_curve, spread

RULER = {1: 3.35, 2: 2.48, 3: 2.03, 4: 1.80, 5: 1.64, 6: 1.55, 7: 1.52}
ROW = {"step": 1, "tokens": 64, "train/loss": 4.2, "val/loss": 4.1}


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("ruler", [None, RULER, {2: 2.4}], ids=["no-ruler", "ruler", "one-level"])
@pytest.mark.parametrize(
    "rows",
    [
        [],
        [ROW],
        [{"step": 0, "tokens": 0, "train/loss": 4.2}],
        [ROW, {"step": 2, "tokens": 128, "train/loss": None, "val/loss": None}, {**ROW, "step": 3, "tokens": 192}],
        [{"step": 1, "train/loss": None}],
        [{"step": step, "train/loss": 4 / step} for step in range(1, 300)],
        [{"step": 1, "tokens": 64, "lr": 1e-3}],
    ],
    ids=["empty", "one-point", "step-zero", "gap", "only-nan", "no-tokens-no-val", "no-losses"],
)
def test_any_metrics_make_a_picture_without_a_warning(tmp_path: Path, rows: list[dict[str, Any]], ruler: Any) -> None:
    path = draw_curve(write(tmp_path, rows), ruler=ruler)
    assert path == tmp_path / "curve.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["curve.png", "metrics.jsonl"]


def test_the_same_metrics_make_the_same_picture(tmp_path: Path) -> None:
    folder = write(tmp_path, [ROW, {**ROW, "step": 2, "tokens": 128, "val/loss": 3.0}])
    first = draw_curve(folder, ruler=RULER).read_bytes()
    assert draw_curve(folder, ruler=RULER).read_bytes() == first
    assert draw_curve(folder, ruler=None).read_bytes() != first


def test_a_run_called_like_a_formula_is_drawn(tmp_path: Path) -> None:
    assert draw_curve(write(tmp_path / "lr_$\\frac{1$", [ROW])).exists()


def test_a_directory_without_metrics_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"metrics\.jsonl cannot be read .* Name the directory of a run\.") as error:
        draw_curve(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("heights", [[0.1, 0.5, 0.9], [0.1, 0.1, 0.1], [0.0, 0.01, 0.5, 0.505, 0.52], [0.3], []])
def test_labels_keep_their_distance_and_their_centre(heights: list[float]) -> None:
    moved = spread(heights)
    assert all(above - below >= GAP - 1e-12 for below, above in itertools.pairwise(moved))
    assert math.isclose(sum(moved), sum(heights), abs_tol=1e-12)
    if all(above - below >= GAP for below, above in itertools.pairwise(heights)):
        assert moved == pytest.approx(heights)
