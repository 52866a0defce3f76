"""Documents kept apart: where they begin, in a row and while decoding, and in a run from text to checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from gptlab import GPT, ModelConfig, registry, rundir
from gptlab.components.attention import Attention
from gptlab.errors import ConfigError
from gptlab.model import GPT as Model

SMALL: dict[str, Any] = {"vocab_size": 11, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16}
ROWS = torch.tensor([[1, 2, 0, 3, 4, 5, 0, 0, 6], [0, 1, 1, 1, 0, 2, 2, 2, 2]])
DOCUMENTS = [[0, 0, 0, 1, 1, 1, 1, 2, 3], [0, 1, 1, 1, 1, 2, 2, 2, 2]]
POSITIONS = [[0, 1, 2, 0, 1, 2, 3, 0, 0], [0, 0, 1, 2, 3, 0, 1, 2, 3]]


def model(**changes: Any) -> Model:
    return GPT(ModelConfig(**{**SMALL, "document_mask": True, "separator": 0, **changes})).eval()


@pytest.mark.parametrize("feed", [[9], [1] * 9, [2, 1, 4, 2], [3, 6], [7, 2]])
def test_positions_restart_after_each_separator_however_the_row_is_fed(feed: list[int]) -> None:
    gpt = model()
    cache = gpt.new_cache(2, 16)
    contexts = [gpt.place(piece, cache) for piece in ROWS.split(feed, dim=1)]
    assert torch.cat([c.positions for c in contexts], dim=1).tolist() == POSITIONS
    documents = [c.documents for c in contexts]
    assert torch.cat([d for d in documents if d is not None], dim=1).tolist() == DOCUMENTS


def test_what_came_before_a_separator_does_not_matter_after_it() -> None:
    gpt, other = model(), ROWS.clone()
    other[:, :2] = 7
    assert torch.allclose(gpt(ROWS)[0, 3:], gpt(other)[0, 3:], atol=1e-6)
    assert not torch.allclose(gpt(ROWS)[0, 2], gpt(other)[0, 2], atol=1e-6)


def test_an_attention_that_cannot_keep_documents_apart_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Attention.separates_documents
    monkeypatch.setattr(registry.get("attention", "mean"), "separates_documents", False)
    with pytest.raises(ConfigError) as refused:
        model(attention="mean", position="none")
    assert "'mean'" in str(refused.value)
    assert "documents apart" in str(refused.value)


def test_a_run_finds_the_separator_of_its_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_text(tmp_path)
    refused = tiny.run("model.document_mask=true", "run_dir=run")
    assert (refused.code, os.listdir()) == (2, ["text.txt"])
    assert "ends them with a line break, as it does lines: choose tokenizer=bpe" in refused.err
    ended = tiny.run("model.document_mask=true", "data.lines=true", "run_dir=run")
    assert ended.code == 0, ended.err
    gpt, text = rundir.load("run")
    assert [gpt.config.separator] == text.encode("\n")
    assert gpt.config.document_mask
