"""Ranks: 1, 2 and 4 of them train the same model on the same batches, write one run, end together. On a CPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch

from gptlab import checkpoint, distributed, parallel, registry, report, rundir
from gptlab.config import TrainerConfig, from_dict
from gptlab.conformance import SLOTS, cases_for
from gptlab.errors import ConfigError

TESTS = Path(__file__).parent
SIZES = ["model.n_layer=2", "model.dropout=0"]
SIZES += [f"trainer.{word}" for word in ("steps=8", "accumulate=2", "log_every=1", "save_every=4")]
WAYS = {  # run directory -> what is trained there by one process, by two ranks, and how those share it
    "adamw": ([], []),
    "ddp": ([], ["trainer.parallel=ddp", "trainer.save=async"]),
    "fsdp": ([], ["trainer.parallel=fsdp"]),
    "compiled": ([], ["trainer.parallel=fsdp", "trainer.compile=true"]),
    "muon": (["optimizer=muon", "model.tie_weights=true"], ["trainer.parallel=fsdp", "trainer.save=async"]),
    "adafactor": (["optimizer=adafactor"], ["trainer.parallel=fsdp"]),
    "lion": (["optimizer=lion"], ["trainer.parallel=fsdp"]),
    "sgd": (["optimizer=sgd"], ["trainer.parallel=fsdp"]),
    "moe": (["model/mlp=moe", "model.mlp.balance=bias", "position=t5"], ["trainer.parallel=fsdp"]),
    "unet": (["model/block=unet", "position=fire"], ["trainer.parallel=fsdp"]),
    "dropout": (["model.dropout=0.2"], []),  # of the same micro-batches
    "task": (["data=sort", "data.n_val=10", "model.block_size=64"], []),
}
KILLED = """
import os, signal, sys
from gptlab import exits, run, train
draw = run.Run._batch
def batch(self, step):
    if step == 5 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(self, step)
run.Run._batch = batch
exits.run(train.main, sys.argv[1:])
"""


VARIANTS = [(slot, name) for slot in SLOTS for name in registry.names(slot)]


@pytest.mark.parametrize(("slot", "name"), VARIANTS, ids=map("/".join, VARIANTS))
def test_no_parameter_is_a_number_which_could_not_be_sharded(slot: str, name: str) -> None:
    model = cases_for(slot, name)[-1].untouched
    assert [key for key, p in model.named_parameters() if not p.dim()] == []


def torchrun(n: int, *arguments: str, cwd: Path) -> tiny.Ended:
    """A command on n ranks of this machine."""
    started = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}", *arguments]
    return tiny.finish(tiny.spawn(*started, cwd=cwd, PYTHONPATH=str(TESTS.parent)))


def trained(n: int, *runs: list[str], cwd: Path) -> tiny.Ended:
    """Trainings by n ranks, one after the other."""
    ended = torchrun(n, str(TESTS / "ranks.py"), json.dumps(runs), cwd=cwd)
    assert ended.code == 0, ended.err
    return ended


def settings(name: str, way: list[str]) -> list[str]:
    words = tiny.overrides(*SIZES, *way, f"run_dir={name}")
    return [word for word in words if not (way[:1] == ["data=sort"] and word == "tokenizer=char")]


def must_agree(one: Path, other: Path, since: int = 0) -> None:
    """The same rows but for the rounding of sums in another order."""
    pairs = list(zip(tiny.rows(one), tiny.rows(other), strict=True))
    assert len(pairs) >= 8
    for a, b in pairs:
        assert a == pytest.approx(b, rel=1e-5), f"{other.name}, step {a['step']}"
    assert tiny.rows(one, "samples.jsonl") == tiny.rows(other, "samples.jsonl")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process, and beside them those of two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    tiny.write_text(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(report, "draw_curve", lambda run_dir, ruler: run_dir)  # half of the time of a tiny run
        for name, (way, _) in WAYS.items():
            assert tiny.call(tiny.train, *settings(f"one_{name}", way)).code == 0
    trained(2, *(settings(f"two_{name}", [*way, *shared]) for name, (way, shared) in WAYS.items()), cwd=folder)
    return folder


def half(run_dir: Path, copy: Path) -> None:
    """A run as it was when it had been stopped after step 4."""
    shutil.copytree(run_dir, copy)
    shutil.rmtree(copy / "checkpoints" / "step_00000008")


@pytest.fixture(scope="module")
def four(home: Path) -> Path:
    """Runs of four ranks: from the beginning, with two parts of two models, and after two ranks."""
    half(home / "two_muon", home / "four_after_two")
    half(home / "one_adamw", home / "four_after_one")
    begun = settings("four_fsdp", ["trainer.parallel=fsdp", "trainer.shard=2"])
    again = ["resume=four_after_two"], ["resume=four_after_one", "trainer.parallel=fsdp", "trainer.shard=1"]
    trained(4, begun, settings("four_ddp", []), *again, cwd=home)
    return home


@pytest.mark.parametrize("name", WAYS)
def test_two_ranks_train_what_one_process_trains(home: Path, name: str) -> None:
    must_agree(home / f"one_{name}", home / f"two_{name}")
    one, two = tiny.newest(home / f"one_{name}"), tiny.newest(home / f"two_{name}")
    atol = 2e-4 if name == "muon" else 1e-6  # its iterations are in bfloat16
    for group in ("model", "optimizer"):
        assert one.tensors[group].keys() == two.tensors[group].keys()
        for key, tensor in one.tensors[group].items():
            torch.testing.assert_close(two.tensors[group][key], tensor, rtol=1e-4, atol=atol, msg=f"{group} {key}")


@pytest.mark.parametrize("name", ["four_fsdp", "four_ddp"])
def test_four_ranks_train_what_one_process_trains(four: Path, name: str) -> None:
    must_agree(four / "one_adamw", four / name)


def test_what_two_ranks_saved_four_go_on_with(four: Path) -> None:
    must_agree(four / "one_muon", four / "four_after_two")
    saved = checkpoint.newest(four / "four_after_two")
    assert saved
    assert len(list(saved.glob("*.safetensors"))) == 4


def test_what_ranks_saved_one_process_goes_on_with(four: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(four)
    half(four / "two_muon", four / "one_after_two")
    ended = tiny.call(tiny.train, "resume=one_after_two")
    assert (ended.code, ended.err) == (0, "")
    assert "One process: trainer.parallel=fsdp, with which this run began, does not apply." in ended.out
    must_agree(four / "one_muon", four / "one_after_two")


def test_what_one_process_saved_ranks_go_on_with(four: Path) -> None:
    must_agree(four / "one_adamw", four / "four_after_one")


def test_a_run_of_ranks_is_one_run_that_one_process_opens(home: Path) -> None:
    notes: list[str] = []
    model, _ = rundir.load(home / "two_fsdp", note=notes.append)
    alone, _ = rundir.load(home / "one_fsdp")
    assert notes == []
    for name, tensor in alone.tensors().items():
        torch.testing.assert_close(model.tensors()[name], tensor, rtol=1e-4, atol=1e-6)
    left, expected = ({path.name for path in (home / name).iterdir()} for name in ("two_fsdp", "one_fsdp"))
    assert left == expected, "no rank leaves files of its own"
    one, two = (tiny.summary(home / name) for name in ("one_fsdp", "two_fsdp"))
    assert one["signature"] == two["signature"], "the same initial values and the same batches"
    assert two["tokens"] == one["tokens"]


def test_nothing_in_a_checkpoint_of_ranks_can_run_code(home: Path) -> None:
    saved = checkpoint.newest(home / "two_fsdp")
    assert saved
    parts = [f"shard-0000{i}-model-00001-of-00001.safetensors" for i in (1, 2)]
    assert sorted(path.name for path in saved.iterdir()) == ["manifest.json", *parts]


def test_a_damaged_part_is_noticed_and_the_checkpoint_before_taken(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "two_fsdp", tmp_path / "r")
    saved = checkpoint.newest(tmp_path / "r")
    assert saved
    part = max(saved.glob("*.safetensors"))
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    notes: list[str] = []
    assert checkpoint.load(tmp_path / "r", note=notes.append).step == 4
    assert "does not have the checksum" in notes[0]


def test_a_killed_rank_ends_the_job_which_torchrun_resumes(home: Path) -> None:
    (home / "killed.py").write_text(KILLED)
    way = settings("killed", ["trainer.parallel=fsdp"])
    ended = torchrun(2, "--max-restarts=1", "killed.py", *way, cwd=home)
    assert ended.code == 0, ended.err
    assert "Another rank has ended" in ended.err
    assert "Going on with killed after step 4." in ended.out
    must_agree(home / "one_adamw", home / "killed")
    assert tiny.summary(home / "killed")["status"] == "done"


def test_a_mistake_is_said_once(home: Path) -> None:
    words = settings("never", ["trainer.batch_size=3"])
    ended = torchrun(2, "-m", "gptlab.train", *words, "trainer.accumulate=1", cwd=home)
    assert ended.code != 0
    said = [line for line in ended.err.splitlines() if line.startswith("gptlab: ")]
    assert len(said) == 1
    assert "2 does not divide 3" in said[0]
    assert not (home / "never").exists()


# Without ranks: what is decided before there are any.


def plan(**settings: object) -> TrainerConfig:
    return TrainerConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings, ranks, rule",
    [
        ({"batch_size": 3, "accumulate": 2}, 4, "4 does not divide 6"),
        ({"parallel": "fsdp"}, 1, "trainer.parallel=fsdp is about several ranks, but this is one process"),
        ({"parallel": "ddp"}, 1, "trainer.parallel=ddp is about several ranks, but this is one process"),
        ({"parallel": "fsdp", "shard": 3}, 4, "trainer.shard must divide the number of ranks, but 3 does not divide 4"),
    ],
)
def test_what_ranks_cannot_share_is_refused(settings: dict[str, object], ranks: int, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        parallel.check(plan(**settings), ranks)


@pytest.mark.parametrize(
    "settings, rule",
    [
        ({"shard": 2}, "trainer.shard=2 is about parts of a model, but trainer.parallel is auto"),
        ({"parallel": "tensor"}, "trainer.parallel must be one of auto, ddp, fsdp"),
        ({"save": "later"}, "trainer.save must be one of wait, async"),
    ],
)
def test_settings_of_ranks_that_mean_nothing_are_refused(settings: dict[str, object], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        plan(**settings)


@pytest.mark.parametrize(
    "batch_size, accumulate, ranks, expected",
    [(4, 1, 1, 1), (4, 3, 1, 3), (4, 2, 2, 1), (4, 1, 2, 1), (4, 3, 2, 2), (5, 2, 2, 1), (2, 8, 4, 2)],
)
def test_micro_batches_of_a_rank_are_alike_and_no_larger_than_asked(
    batch_size: int, accumulate: int, ranks: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "size", lambda: ranks)
    assert distributed.micro_batches(batch_size, accumulate) == expected


def test_ranks_take_all_sequences_once_and_as_many_batches_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: 3)
    taken, counted = [], []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        taken += list(range(12))[distributed.rows(12)]
        dealt = list(distributed.dealt(range(7)))
        assert len(dealt) == 3
        counted += [item for item, counts in dealt if counts]
    assert taken == list(range(12))
    assert sorted(counted) == list(range(7))


def test_a_run_that_ranks_began_goes_on_in_one_process_as_usual() -> None:
    notes: list[str] = []
    began = from_dict({"trainer": {"parallel": "fsdp", "shard": 2}}).trainer
    parallel.fitted(began, 3, notes.append)
    assert (began.parallel, began.shard) == ("fsdp", 0)
    parallel.fitted(began, 1, notes.append)
    assert (began.parallel, began.shard) == ("auto", 0)
    assert len(notes) == 2
