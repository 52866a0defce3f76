"""What the machine can do: the device, the precision, a compiler, and a peak that is the chip's own or none."""

from __future__ import annotations

import shutil
import sys
from types import SimpleNamespace

import pytest
import tiny
import torch

from gptlab import hardware
from gptlab.compiling import CompiledLoss, Whole, replays, wants_compiling
from gptlab.config import ModelConfig
from gptlab.cost import flops_per_token
from gptlab.errors import ConfigError
from gptlab.hardware import autocast, choose_device, choose_precision, describe, has_compiler, peak_flops, versions
from gptlab.model import GPT

CPU = torch.device("cpu")


@pytest.mark.parametrize("wanted", ["cuda:99", "meta", "foo", "", "cpu0"])
def test_a_device_that_is_not_here_is_refused_in_one_line(wanted: str) -> None:
    with pytest.raises(ConfigError) as refused:
        choose_device(wanted)
    assert "\n" not in str(refused.value)


def test_auto_is_a_device_of_this_machine() -> None:
    assert torch.zeros(1, device=choose_device("auto")).item() == 0
    assert choose_device("cpu") == CPU


def test_a_precision_that_is_named_is_taken_unless_it_cannot_be() -> None:
    assert choose_precision("fp32", CPU) == "fp32"
    assert choose_precision("bf16", CPU) == "bf16"
    assert choose_precision("auto", CPU) in ("fp32", "bf16")
    with pytest.raises(ConfigError, match="needs a GPU"):
        choose_precision("fp16", CPU)


def test_products_are_in_the_precision() -> None:
    x = torch.ones(2, 2)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(CPU, precision):
            assert (x @ x).dtype == dtype


@pytest.mark.parametrize(
    "name, peak",
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA B900", None),
        ("Tesla T4", None),
    ],
)
def test_the_peak_is_that_of_the_chip_or_none(name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda")) == peak
    assert peak_flops(CPU) is None


def test_what_a_number_belongs_to_is_written_down() -> None:
    assert {"device", "cpu", "cores", "threads", "system"} <= describe(CPU).keys()
    assert {"gptlab", "torch", "python", "hydra-core"} <= versions().keys()


def test_a_compiler_is_looked_for_in_cxx_and_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not has_compiler(CPU)
    monkeypatch.setenv("CXX", "/opt/mine/c++")
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "/opt/mine/c++" else None)
    assert has_compiler(CPU)


@pytest.mark.parametrize(
    ("wanted", "device", "flops", "compiles"),
    [
        ("auto", "cpu", 1e13, False),
        ("auto", "cpu", 1e15, True),
        ("auto", "cuda", 1e9, True),
        ("auto", "mps", 1e15, False),
        ("true", "cpu", 1e9, True),
        ("false", "cuda", 1e15, False),
    ],
)
def test_a_cpu_compiles_where_it_pays(
    wanted: str, device: str, flops: float, compiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptlab.compiling.has_compiler", lambda device: True)
    assert wants_compiling(wanted, torch.device(device), flops, pytest.fail) == compiles


def test_without_a_compiler_training_goes_on_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptlab.compiling.has_compiler", lambda device: False)
    notes: list[str] = []
    assert not wants_compiling("true", CPU, 1e9, notes.append)
    assert notes == ["No compiler was found (C++; Triton on CUDA): training goes on without torch.compile."]


def test_an_error_of_the_model_is_no_failed_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("mine")

    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    with pytest.raises(ZeroDivisionError):
        CompiledLoss(broken, pytest.fail)()
    with pytest.raises(ZeroDivisionError):
        Whole(broken, pytest.fail, print)()


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(CPU), reason="needs a C++ compiler")
def test_a_compiled_run_trains_as_the_plain_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("compiled")
    text = tiny.write_text(folder)
    for name, wanted in (("plain", "false"), ("compiled", "true")):
        words = [f"data.path={text}", f"run_dir={folder / name}", f"trainer.compile={wanted}", "model.dropout=0"]
        ended = tiny.run(*words, "trainer.steps=4", "model/mlp=none", "model/norm=none")
        assert ended.code == 0, ended.err
        assert "goes on without" not in ended.out
    plain, compiled = tiny.rows(folder / "plain"), tiny.rows(folder / "compiled")
    assert [row["train/loss"] for row in compiled] == pytest.approx([row["train/loss"] for row in plain], abs=1e-4)
    assert not any("_orig_mod" in name for name in tiny.newest(folder / "compiled").tensors["model"])


def test_flops_of_a_token_are_six_for_each_weight_and_the_scores() -> None:
    config = ModelConfig(
        vocab_size=50, block_size=32, n_layer=3, n_head=2, n_embd=16, attention="vanilla", position="none", norm="none"
    )
    layer = 4 * 16 * 16 + 2 * 16 * 64  # q, k, v and the output; the MLP's two matrices
    scores = 2 * 32 * 16  # q k^T and the product with v, each 2 T C forward, for each token
    expected = 6 * (3 * layer + 16 * 50) + 3 * 3 * 2 * scores
    assert flops_per_token(config) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100X", None),
    ],
)
def test_a_chip_whose_peak_is_not_known_gets_none_of_another(
    name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda")) == peak


def test_a_backward_pass_that_cannot_be_compiled_leaves_the_plain_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
            raise torch._dynamo.exc.TorchDynamoException("no backward here")

    class Toy(torch.nn.Linear):
        def loss(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            return self(x).sum(), {}

    toy, notes = Toy(2, 2), []
    spoilt = lambda x: (Failing.apply(toy(x).sum()), {})  # noqa: E731
    monkeypatch.setattr(torch, "compile", lambda function: spoilt)
    loss = CompiledLoss(toy.loss, notes.append)
    total, _ = loss(torch.ones(1, 2))
    total.backward()
    assert notes == ["torch.compile failed (no backward here): training goes on without it."]


def test_the_trial_of_a_compiled_loss_leaves_no_trace() -> None:
    """What it draws and counts comes again: a resumed run goes on with the bits of one that was never stopped."""
    sizes = {"vocab_size": 7, "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8}
    model = GPT(ModelConfig(**sizes, dropout=0.5, mlp={"name": "moe", "balance": "bias"}))
    compiled = CompiledLoss(model.loss, print)
    compiled.current = model.loss
    tokens = torch.randint(7, (2, 8), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    wanted = model.loss(tokens, tokens)[0]
    counts = model.blocks[0].mlp.router.balance.counts.clone()
    model.blocks[0].mlp.router.balance.counts.zero_()
    torch.manual_seed(3)
    assert torch.equal(compiled(tokens, tokens)[0], wanted)
    assert torch.equal(model.blocks[0].mlp.router.balance.counts, counts)


@pytest.mark.skipif(sys.platform != "linux", reason="about glibc")
@pytest.mark.parametrize("told", [False, True])
def test_glibc_is_told_to_keep_memory_unless_the_user_tells_it_something(
    told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        hardware.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda key, value: asked.append(key))
    )
    if told:
        monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    hardware.keep_freed_memory()
    assert asked == ([] if told else [hardware.MMAP_THRESHOLD, hardware.TRIM_THRESHOLD])


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware.ctypes, "CDLL", lambda name: SimpleNamespace())
    hardware.keep_freed_memory()


def test_only_small_steps_on_cuda_are_replayed_unasked() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert replays("auto", cuda, 4e9, 4)  # nanoGPT's recipe for a CPU
    assert not replays("auto", cuda, 3.5e12, 12)  # GPT-2 124M, 4 x 1024
    assert not replays("auto", cpu, 4e9, 4)
    assert not replays("false", cuda, 4e9, 4)
    assert replays("true", cuda, 3.5e12, 12)
