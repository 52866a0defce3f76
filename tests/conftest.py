"""What every test is given: no W&B, a cache apart, one thread. `--plugin FILE` holds a plugin's to the laws."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--plugin", action="append", default=[], metavar="FILE", help="or module: hold its variants to the laws"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs CUDA")
    os.environ["WANDB_MODE"] = "disabled"
    import torch

    from gptlab import components, plugins  # noqa: F401  (registers the variants, before the plugins' are counted)

    torch.set_num_threads(1)  # workers of pytest-xdist share the cores
    plugins.load(config.getoption("--plugin"))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared texts and downloads of this session, apart from the user's."""
    cache = tmp_path_factory.mktemp("cache")
    os.environ["GPTLAB_CACHE"] = str(cache)
    return cache


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it: the next one in its process counts ours."""
    from gptlab import registry

    monkeypatch.setattr(registry, "_variants", {slot: dict(known) for slot, known in registry._variants.items()})


@pytest.fixture
def float64() -> Iterator[None]:
    """New tensors are float64, and random ones begin at seed 0: for tests that hold formulas to many digits."""
    import torch

    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and this machine has none"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """With -v, what tests measured: their `record_property("measured", line)`."""
    done = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    calls = [report for report in done if report.when == "call"]
    lines = [value for report in calls for key, value in report.user_properties if key == "measured"]
    if lines and terminalreporter.config.get_verbosity() >= 0:
        terminalreporter.section("measured")
        terminalreporter.write("\n".join([*lines, ""]))
