"""A checkpoint is complete or it is not there; damage of any kind is detected; a resume is exact to the bit."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gptlab import checkpoint
from gptlab.checkpoint import kept, load, newest, save
from gptlab.errors import CheckpointError, ConfigError
from gptlab.optimizer import memory

FILE = "model.safetensors"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool)


def tensors(step: int) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(64, 33, generator=generator)
    return {"model": {"weight": weight, "bias": weight[0].clone()}, "optimizer": {"weight/exp_avg": weight * 2}}


def silent(text: str) -> None:
    raise AssertionError(f"nothing to say, but: {text}")


def assert_is(found: checkpoint.Checkpoint, step: int) -> None:
    expected = tensors(step)
    assert found.step == step
    assert found.meta == {"step": step}
    assert found.tensors.keys() == expected.keys()
    for name, group in expected.items():
        torch.testing.assert_close(found.tensors[name], group, rtol=0, atol=0)


def save_steps(run_dir: Path, *steps: int, keep: int = 10) -> list[Path]:
    return [save(run_dir, step, tensors(step), {"step": step}, keep=keep) for step in steps]


def test_what_is_saved_comes_back_bit_for_bit_in_every_dtype(tmp_path: Path) -> None:
    base = torch.randn(6, 5) * 50
    group = {str(dtype)[6:]: base.to(dtype) for dtype in DTYPES}
    group |= {
        "transposed": base.T,
        "slice": base[1:3, ::2],
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "odd": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
    }
    meta = {"lr": 0.1 + 0.2, "best": float("inf"), "data": {"signature": "é", "list": [1, None, True]}}
    save(tmp_path, 1, {"model": group, "nothing": {}}, meta, keep=1)
    found = load(tmp_path, note=silent)
    assert found.meta == meta
    assert found.tensors.keys() == {"model", "nothing"}
    assert found.tensors["model"].keys() == group.keys()
    for name, tensor in group.items():
        got = found.tensors["model"][name]
        assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
        assert got.contiguous().view(-1).view(torch.uint8).equal(tensor.contiguous().view(-1).view(torch.uint8)), name


def test_a_checkpoint_is_a_directory_with_a_manifest_and_nothing_else_is_left(tmp_path: Path) -> None:
    (path,) = save_steps(tmp_path, 1000)
    assert path == tmp_path / "checkpoints" / "step_00001000"
    assert sorted(os.listdir(path)) == ["manifest.json", "model.safetensors", "optimizer.safetensors"]
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 1000
    assert manifest["files"]["model.safetensors"]["bytes"] == (path / "model.safetensors").stat().st_size
    assert [entry.name for entry in path.parent.iterdir()] == ["step_00001000"]


def test_the_newest_are_kept_and_the_newest_is_loaded(tmp_path: Path) -> None:
    save_steps(tmp_path, 5, 50, 500, 5_000_000_000, keep=3)
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000050", "step_00000500", "step_5000000000"]
    assert newest(tmp_path) == folder / "step_5000000000"
    assert_is(load(tmp_path, note=silent), 5_000_000_000)
    assert_is(load(folder / "step_00000050", note=silent), 50)
    (folder / "step_00000500.replaced").mkdir()
    names = {50: "step_00000050", 500: "step_00000500", 5_000_000_000: "step_5000000000"}
    assert list(kept(tmp_path).items()) == [(step, folder / name) for step, name in names.items()]
    assert kept(tmp_path / "nowhere") == {}


def test_a_run_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    with pytest.raises(CheckpointError, match="holds no checkpoint yet"):
        load(tmp_path, note=silent)
    with pytest.raises(CheckpointError, match="There is no directory"):
        load(tmp_path / "nowhere", note=silent)
    with pytest.raises(ConfigError, match="at least 1, but is 0"):
        save_steps(tmp_path, 1, keep=0)


# --- damage ---------------------------------------------------------------------------------------------------------


def flip(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a-flipped-bit-in-the-header": lambda path: flip(path / FILE, 0.001),
    "a-flipped-bit-in-the-middle": lambda path: flip(path / FILE, 0.5),
    "a-flipped-bit-at-the-end": lambda path: flip(path / "optimizer.safetensors", 1.0),
    "a-truncated-file": lambda path: os.truncate(path / "optimizer.safetensors", 100),
    "a-longer-file": lambda path: (path / FILE).open("ab").write(b"\0"),
    "a-missing-file": lambda path: (path / FILE).unlink(),
    "another-checkpoint's-file": lambda path: os.replace(path.parent / "step_00000001" / FILE, path / FILE),
    "no-manifest": lambda path: (path / "manifest.json").unlink(),
    "an-empty-manifest": lambda path: os.truncate(path / "manifest.json", 0),
    "a-truncated-manifest": lambda path: os.truncate(path / "manifest.json", 50),
    "a-manifest-that-is-no-text": lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe\x00"),
    "an-edited-step": lambda path: edit(path, lambda m: m.update(step=4)),
    "an-edited-meta": lambda path: edit(path, lambda m: m["meta"].update(step=4)),
    "a-file-taken-off-the-manifest": lambda path: edit(path, lambda m: m["files"].popitem()),
    "an-edited-checksum": lambda path: edit(path, lambda m: m["files"][FILE].update(sha256="0" * 64)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_detected_and_the_newest_good_one_is_used(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    _, good, bad = save_steps(tmp_path, 1, 2, 3)
    damage(bad)
    said: list[str] = []
    assert_is(load(tmp_path, note=said.append), 2)
    assert len(said) == 1
    assert said[0].startswith("Damaged and not used: step_00000003: ")
    assert said[0].endswith(f"Going on from {good.name}.")
    assert "\n" not in said[0]
    with pytest.raises(CheckpointError, match="step_00000003 is good"):  # named outright, it is not swapped for another
        load(bad, note=silent)


def test_when_none_is_good_each_is_named_with_its_damage(tmp_path: Path) -> None:
    first, second = save_steps(tmp_path, 1, 2)
    flip(first / "model.safetensors", 0.5)
    (second / "manifest.json").unlink()
    with pytest.raises(CheckpointError) as error:
        load(tmp_path, note=silent)
    text = str(error.value)
    assert "step_00000001: model.safetensors does not have the checksum" in text
    assert "step_00000002: manifest.json cannot be read (No such file or directory)" in text
    assert "\n" not in text


def test_every_single_byte_of_a_small_checkpoint_is_guarded(tmp_path: Path) -> None:
    path = save(tmp_path, 1, {"model": {"w": torch.ones(2)}}, {"a": 1}, keep=1)
    for file in path.iterdir():
        whole = file.read_bytes()
        for at in range(len(whole)):
            changed = bytearray(whole)
            changed[at] ^= 0x01
            file.write_bytes(changed)
            try:
                found = load(path, note=silent)
            except CheckpointError:
                continue
            finally:
                file.write_bytes(whole)
            assert (found.step, found.meta) == (1, {"a": 1}), (file.name, at)  # white space in the manifest
            assert found.tensors["model"]["w"].equal(torch.ones(2))


def test_a_later_format_is_refused_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", 3)
    save_steps(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="written in format 3, this gptlab reads formats 1 and 2"):
        load(tmp_path, note=silent)


def test_a_pickle_in_place_of_tensors_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    monkeypatch.setattr("gptlab.checkpoint.save_file", lambda _, path: torch.save(Trap(), path))
    save_steps(tmp_path, 1)  # its checksums are right: whoever makes a trap can make them too
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        load(tmp_path, note=silent)
    assert not (tmp_path / "sprung").exists()


# --- what stops a save ----------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_line_and_the_checkpoint_before_is_untouched(tmp_path: Path) -> None:
    save_steps(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))  # the kernel refuses to write on, as a full disk does
    try:
        with pytest.raises(CheckpointError, match=r"step 2 could not be saved .*File too large") as error:
            save_steps(tmp_path, 2, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]
    assert_is(load(tmp_path, note=silent), 1)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file is in the way")
    with pytest.raises(CheckpointError, match=r"could not be saved .* Make room there, and resume"):
        save_steps(tmp_path, 1)


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("again", [False, True], ids=["a-new-step", "the-same-step-again"])
def test_a_save_killed_at_any_system_call_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    for fatal in range(100):
        run_dir = tmp_path / str(fatal)
        save_steps(run_dir, *([1, 2] if again else [1]), keep=1)
        left = fatal

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **named: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed
                return call(*args, **named)

            return wrapped

        with monkeypatch.context() as patch:
            for name in ("fsync", "rename", "rmdir", "unlink", "mkdir", "open"):
                patch.setattr(os, name, counted(getattr(os, name)))
            patch.setattr("gptlab.checkpoint.save_file", counted(save_file))
            try:
                save_steps(run_dir, 2, keep=1)
                finished = True
            except Killed:
                finished = False
        assert_is(load(run_dir, note=silent), found := load(run_dir, note=silent).step)
        assert found in ({2} if again else {1, 2})
        save_steps(run_dir, 3, keep=1)  # the next save sweeps up
        assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step_00000003"]
        if finished:
            assert fatal > 10
            return
    pytest.fail("a save does not take a hundred system calls")


def test_kill_9_at_random_moments_always_leaves_a_checkpoint_that_loads(tmp_path: Path) -> None:
    code = """
        import os, random, signal, sys, time
        from pathlib import Path
        import torch
        from gptlab.checkpoint import load, save
        torch.set_num_threads(1)
        run_dir, step = Path(sys.argv[1]), 0
        def group(step): return {"model": {"w": torch.full((50_000,), float(step))}, "optimizer": {"m": torch.ones(9)}}
        save(run_dir, 0, group(0), {"step": 0}, keep=2)
        random.seed(0)
        for _ in range(40):
            child = os.fork()
            if not child:
                while True:
                    step += 1
                    save(run_dir, step, group(step), {"step": step}, keep=2)
            time.sleep(random.uniform(0.002, 0.06))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            found = load(run_dir, note=sys.exit)
            assert found.step >= step and found.meta == {"step": found.step}, (found.step, step)
            assert found.tensors["model"]["w"].equal(group(found.step)["model"]["w"])
            step = found.step
        print(step)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    assert int(subprocess.check_output(command)) > 0  # some saves were finished, so the others were cut off
    save_steps(tmp_path, 10**7, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_10000000"]


def test_a_run_resumed_from_an_older_checkpoint_leaves_its_other_future(tmp_path: Path) -> None:
    *_, bad = save_steps(tmp_path, 1, 2, 3)
    flip(bad / "model.safetensors", 0.5)
    save(tmp_path, 2, tensors(20), {"step": 20}, keep=1)  # resumed from step 1, it comes by step 2 again
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000002"]
    assert load(tmp_path, note=silent).meta == {"step": 20}


@pytest.mark.skipif(not __debug__, reason="assertions are off")
def test_names_of_a_compiled_model_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="compiled"):
        save(tmp_path, 1, {"model": {"_orig_mod.weight": torch.ones(1)}}, {}, keep=1)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-2),
    "adamw-fused": lambda groups: torch.optim.AdamW(groups, lr=1e-2, fused=True),
    "adamw-foreach-amsgrad": lambda groups: torch.optim.AdamW(groups, lr=1e-2, foreach=True, amsgrad=True),
    "adamw-tensor-lr": lambda groups: torch.optim.AdamW(groups, lr=torch.tensor(1e-2), foreach=False),
    "sgd-momentum": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=1e-3, momentum=0.5, centered=True),
    "adagrad": lambda groups: torch.optim.Adagrad(groups, lr=1e-2),
}


class Room:
    """A little model with two parameter groups, one parameter that never gets a gradient, and a moving rate."""

    def __init__(self, make: Callable[[Any], torch.optim.Optimizer], seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(3, 3))
        self.model[2].requires_grad_(False)
        matrices, vectors = ([w for w in self.model.parameters() if w.ndim == n] for n in (2, 1))
        self.optimizer = make([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}])
        self.names = {parameter: name for name, parameter in self.model.named_parameters()}

    def train(self, steps: range) -> None:
        for step in steps:
            self.optimizer.param_groups[0]["weight_decay"] = 0.1 / (1 + step)  # set by a schedule now and then
            generator = torch.Generator().manual_seed(step)
            loss = self.model(torch.randn(8, 5, generator=generator)).square().sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_a_restored_optimizer_goes_on_bit_for_bit(tmp_path: Path, make: Any) -> None:
    unbroken = Room(make)
    unbroken.train(range(5))
    stored, meta = memory.tensors_of(unbroken.optimizer, unbroken.names)
    model = dict(unbroken.model.named_parameters())
    save(tmp_path, 5, {"model": model, "optimizer": stored}, {"optimizer": meta}, keep=1)
    unbroken.train(range(5, 10))

    found = load(tmp_path, note=silent)
    resumed = Room(make, seed=1)
    resumed.model.load_state_dict(found.tensors["model"])
    memory.restore(resumed.optimizer, resumed.names, found.tensors["optimizer"], found.meta["optimizer"])
    resumed.train(range(5, 10))

    for (name, one), other in zip(unbroken.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert one.equal(other), name
    torch.testing.assert_close(unbroken.optimizer.state_dict(), resumed.optimizer.state_dict(), rtol=0, atol=0)


def test_what_a_step_changes_is_restored_and_the_loaded_tensors_are_not_shared() -> None:
    room = Room(OPTIMIZERS["adamw"])
    room.train(range(2))
    room.optimizer.param_groups[1].update(lr=0.125, betas=(0.5, 0.75))
    stored, meta = memory.tensors_of(room.optimizer, room.names)
    stored, meta = {name: tensor.clone() for name, tensor in stored.items()}, json.loads(json.dumps(meta))
    before = {name: tensor.clone() for name, tensor in stored.items()}
    other = Room(OPTIMIZERS["adamw"])
    memory.restore(other.optimizer, other.names, stored, meta)
    assert other.optimizer.param_groups[1]["lr"] == 0.125
    assert other.optimizer.param_groups[1]["betas"] == (0.5, 0.75)
    other.train(range(2, 4))
    torch.testing.assert_close(stored, before, rtol=0, atol=0)


def test_the_kernel_of_the_resuming_machine_is_kept() -> None:
    fused, plain = Room(OPTIMIZERS["adamw-fused"]), Room(OPTIMIZERS["adamw"])
    fused.train(range(2))
    memory.restore(plain.optimizer, plain.names, *memory.tensors_of(fused.optimizer, fused.names))
    assert not any(group["fused"] for group in plain.optimizer.param_groups)
    plain.train(range(2, 3))


def test_names_that_are_missing_or_left_over_are_refused_by_name() -> None:
    room = Room(OPTIMIZERS["adamw"])
    room.train(range(1))
    stored, meta = memory.tensors_of(room.optimizer, room.names)
    assert "0.weight/exp_avg" in stored
    assert not any(name.startswith("2.") for name in stored)  # frozen: no gradient, no state
    fewer = {name: tensor for name, tensor in stored.items() if name != "0.weight/exp_avg"}
    with pytest.raises(CheckpointError, match=r"state tensors .* lacks 0\.weight/exp_avg"):
        memory.restore(room.optimizer, room.names, fewer, meta)
    with pytest.raises(CheckpointError, match="has besides extra/exp_avg"):
        memory.restore(room.optimizer, room.names, {**stored, "extra/exp_avg": torch.ones(1)}, meta)
    renamed = {parameter: name.replace("1.", "one.") for parameter, name in room.names.items()}
    with pytest.raises(CheckpointError, match=r"lacks group 0: 1\.weight, .* and has besides group 0: one\.weight"):
        memory.restore(room.optimizer, renamed, stored, meta)
