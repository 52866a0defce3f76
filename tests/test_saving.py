"""Who writes a checkpoint when; what goes wrong in the background is told, once, and ends the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny

from gptlab import checkpoint
from gptlab.errors import CheckpointError
from gptlab.saving import Saver


def _full(*args: Any, **options: Any) -> None:
    raise CheckpointError("The disk is full.")


def test_what_fails_in_the_background_is_raised_by_the_next_save_or_by_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "save", _full)
    saver = Saver(background=True)
    saver.save(tmp_path, 1, {}, {}, keep=1)
    with pytest.raises(CheckpointError, match="full"):
        saver.save(tmp_path, 2, {}, {}, keep=1)
    saver.wait()  # the second was not begun, and the failure is told
    saver.save(tmp_path, 3, {}, {}, keep=1)
    with pytest.raises(CheckpointError, match="full"):
        saver.wait()


@pytest.mark.parametrize("save_every", [3, 0])  # before a next save, and at the end alone
def test_a_run_whose_checkpoint_cannot_be_written_in_the_background_fails(
    save_every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_text(tmp_path)
    monkeypatch.setattr(checkpoint, "save", _full)
    ended = tiny.run("run_dir=r", "trainer.save=async", f"trainer.save_every={save_every}")
    assert ended.code != 0
    assert "The disk is full." in ended.err
    assert tiny.summary("r")["status"] == "failed"
