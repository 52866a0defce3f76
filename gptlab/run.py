"""One run from its config to its summary: text, model, directory, logs, training, and going on after a stop."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptlab import checkpoint, distributed, material, parallel, pretrained, report, rundir, rundirs
from gptlab.assembly import check, device_of, explained, make_state, work
from gptlab.compiling import forecast
from gptlab.config import RunConfig, require, to_dict
from gptlab.cost import flops_per_token
from gptlab.dashboards import WandbLog, open_wandb
from gptlab.display import Display, SilentDisplay, make_display
from gptlab.errors import LostRank, Pruned
from gptlab.files import write_atomically
from gptlab.hardware import (
    autocast,
    choose_device,
    choose_precision,
    describe,
    peak_flops,
    versions,
)
from gptlab.material import Material
from gptlab.model import GPT
from gptlab.remarks import remarks
from gptlab.runlog import RunLog, SilentLog, rewind, write_summary
from gptlab.saving import Saver, contents, initial, restore
from gptlab.step import Batch, TrainState
from gptlab.stopping import deaf, stop_requests
from gptlab.tokenizer import load as load_tokenizer
from gptlab.trainer import Actions, Status, train

Watch = Callable[[Mapping[str, Any]], None]  # is shown each row that holds val/loss, and may raise Pruned


def start(
    config: RunConfig, command: Mapping[str, Any], display: Display | None = None, watch: Watch | None = None
) -> tuple[Status, Path]:
    """Train a new run. Everything that can be wrong is found before its directory exists.

    Ranks that torchrun has started again go on with the run that they had begun.
    """
    config = rundir.whole(config)
    with distributed.joined(device_of(config)):
        if distributed.restarted() and (begun := distributed.of_first(lambda: _begun_before(config, command))):
            return _go_on(Path(begun), {}, display)
        display = display or _own_display()
        run_dir = Path(distributed.of_first(lambda: str(rundirs.fresh(config.run_dir, config.name))))
        check(config)
        plan = config.trainer  # a run goes on in the precision that it began in, wherever that is
        plan.precision = choose_precision(plan.precision, choose_device(plan.device))
        words, note = command.get("overrides", ()), display.note
        source = distributed.one_per_machine_first(
            lambda: material.prepare(config, pretrained.tokenizer_of(config), note, words)
        )
        state = make_state(config, source, display)
        run = Run(config, run_dir, source, state, display, command, initial(state.model), watch)
        source.check_sample(state.model)
        distributed.of_first(lambda: rundir.write(run_dir, config, source.tokenizer, {**command, **_job()}))
        return run.train(), run_dir


def _begun_before(config: RunConfig, command: Mapping[str, Any]) -> str | None:
    """The directory of the run that this job has begun and not ended, where torchrun has started it again."""
    found = [config.run_dir] if config.run_dir else rundirs.recent()
    wanted = distributed.job(), command.get("overrides")
    held = ((path, _read(Path(path) / rundir.COMMAND)) for path in found)
    return next((path for path, its in held if (its.get("job"), its.get("overrides")) == wanted), None)


def _job() -> dict[str, Any]:
    return {"job": distributed.job()} if distributed.size() > 1 else {}


def _own_display() -> Display:
    return make_display() if distributed.is_first() else SilentDisplay()


def go_on(wanted: str, changes: Mapping[str, Any]) -> tuple[Status, Path]:
    """Continue a run from its newest good checkpoint, or from its beginning when it was stopped before the first."""
    run_dir = rundirs.find(wanted)
    with distributed.joined(device_of(rundir.changed(rundir.read_config(run_dir), run_dir, changes))):
        run_dir = Path(distributed.of_first(lambda: str(run_dir)))  # the latest may have been another's
        return _go_on(run_dir, changes)


def _go_on(run_dir: Path, changes: Mapping[str, Any], display: Display | None = None) -> tuple[Status, Path]:
    display = display or _own_display()
    config = rundir.changed(rundir.read_config(run_dir), run_dir, changes)
    if not changes.keys() & {"trainer.parallel", "trainer.shard"}:
        parallel.fitted(config.trainer, distributed.size(), display.note)
    check(config)
    own = config.init and (run_dir / rundirs.TOKENIZER).is_file()  # what the weights brought may be gone by now
    source = distributed.one_per_machine_first(
        lambda: material.prepare(
            config,
            load_tokenizer(run_dir / rundirs.TOKENIZER) if own else pretrained.tokenizer_of(config),
            display.note,
        )
    )
    saved = distributed.of_first(lambda: checkpoint.newest(run_dir) is not None)
    state = make_state(config, source, display, fresh=not saved)
    drawn = initial(state.model)
    if saved:
        drawn = _read(run_dir / rundir.SUMMARY).get("signature", {}).get("init", {})
        restore(state, run_dir, source.fingerprint, display.note)
    require(
        state.step < state.config.steps,
        f"{run_dir} is done: it has trained all {state.config.steps} steps. To go on, raise trainer.steps.",
    )
    require(
        not state.stopped_early,
        f"{run_dir} stopped early, {state.waited} evaluations after its best. To go on, raise trainer.patience.",
    )
    command = _read(run_dir / rundir.COMMAND)
    run = Run(config, run_dir, source, state, display, command, drawn)
    source.check_sample(state.model)
    distributed.of_first(lambda: _take_back(run_dir, config, state.step))
    display.note(f"Going on with {run_dir} after step {state.step:,}.")
    return run.train(), run_dir


def _take_back(run_dir: Path, config: RunConfig, step: int) -> None:
    """Leave a run as it was at a step, with what was changed in its config for the next one that goes on with it."""
    command = {**_read(run_dir / rundir.COMMAND), **_job()}
    write_atomically(run_dir / rundir.COMMAND, json.dumps(command, indent=2).encode())
    rundir.write_config(run_dir, config)
    rewind(run_dir, step)


@dataclass
class Run:
    """A run under way: what the trainer calls between its steps, and what is written when it ends."""

    config: RunConfig
    run_dir: Path
    material: Material
    state: TrainState
    display: Display
    command: Mapping[str, Any]  # what command.json holds
    drawn: Mapping[str, str]  # of `initial`
    watch: Watch | None = None
    log: RunLog = field(init=False)
    saver: Saver = field(init=False)
    train_loss: float | None = None  # newest
    flops: float | None = None  # per token
    measured: dict[str, float] = field(default_factory=dict)  # at the newest evaluation

    def train(self) -> Status:
        """Train to the end, to a stop, or to a failure; whichever it is, summary.json tells."""
        self.flops = self._count_flops()
        self.display.start(self.config.trainer.steps, self._title(), ruler=self.material.levels)
        self.log, self.saver = SilentLog(self.run_dir), Saver(self.config.trainer.save == "async")
        distributed.of_first(self._open_log)
        try:
            with stop_requests(self.log.note) as asked:
                self.log.wandb = self._open_wandb() if distributed.is_first() else None
                actions = Actions(
                    self._log, self._evaluate, self._sample, self._save,
                    stopping=lambda: distributed.host_total(asked()) > 0, keep_best=self._save_best,
                )  # fmt: skip
                status = train(self.state, self._batch, actions, self._mfu)
                self.saver.wait()
        except Pruned:
            self.saver.finish()
            status = "pruned"
        except BaseException as error:
            if isinstance(error, Exception):  # what it has begun to write is worth having
                self.saver.finish()
            told = explained(error)
            with deaf():  # torchrun ends us when another rank has died, but not before the summary says so
                text = str(told if isinstance(told, LostRank) else error)
                self._close("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", text)
            raise told from error
        if self.state.stopped_early:
            self.log.note(
                f"Stopped early at step {self.state.step}: no evaluation was better than that of step "
                f"{self.state.best_step} for {self.state.waited} times."
            )
        self._close(status)
        return status

    def _open_log(self) -> None:
        self.log = RunLog(self.run_dir, display=self.display)
        write_summary(self.run_dir, self.summary("running"))

    def _open_wandb(self) -> WandbLog | None:
        about = {**to_dict(self.config), "variants": rundir.variants(self.config)}
        study, names = self.command.get("study"), {"name": self.run_dir.name, "project": self.config.name}
        return open_wandb(self.config.logger, self.run_dir, **names, config=about, note=self.display.note, study=study)

    def _close(self, status: str, error: str | None = None) -> None:
        if not distributed.is_first():
            return
        self.log.close({**self.summary(status, error), "curve": self._draw() if self.state.step else None})

    def summary(self, status: str, error: str | None = None) -> dict[str, Any]:
        """What summary.json holds."""
        state = self.state
        known = math.isfinite(state.last)
        return {
            "status": status,
            "error": error,
            "step": state.step,
            "steps": state.config.steps,
            "train_loss": self.train_loss,
            "val_loss": state.last if known else None,
            "best_val_loss": state.best if known else None,
            "best_step": state.best_step if known else None,
            "stopped_early": state.stopped_early,
            **self.material.summary(state.last if known else None, self.measured),
            "parameters": state.model.n_parameters(),
            "trained_parameters": _learning(state.model),
            "flops_per_token": self.flops,
            "peak_flops": peak_flops(state.device),
            "tokens": state.step * state.tokens_per_step,
            "seconds": state.seconds,
            "seconds_per_step": statistics.median(state.paces) if state.paces else None,
            "peak_memory": state.peak_memory(),
            "skipped_steps": state.n_bad,
            "precision": state.precision,
            "variants": rundir.variants(self.config),
            "hardware": {**describe(state.device), "ranks": distributed.size()},
            "versions": versions(),
            "data": self.material.fingerprint,
            "signature": {"init": self.drawn, "data": self.material.signature},
            "run_dir": str(self.run_dir),
        }

    def _batch(self, step: int) -> Batch:
        return self.material.batch(step, distributed.rows(self.material.n_sequences))

    def _log(self, row: Mapping[str, Any]) -> None:
        self.train_loss = row.get("train/loss", self.train_loss)
        row = {**row, "flops": row["tokens"] * self.flops} if self.flops else row
        self.log.metrics(row)
        if self.watch and "val/loss" in row:
            self.watch(row)

    def _evaluate(self) -> dict[str, float]:
        self.measured = self.material.evaluate(self.state.model, self._reduced())
        distributed.settle(self.state.model)
        return self.measured

    def _sample(self) -> None:
        text = self.material.sample(self.state.model, self.state.step, self._reduced())  # which needs all ranks
        distributed.settle(self.state.model)
        self.log.sample(self.state.step, text)

    def _reduced(self) -> AbstractContextManager[Any]:
        return autocast(self.state.device, self.state.precision)

    def _save(self) -> None:
        groups, meta = contents(self.state)
        meta["data"] = self.material.fingerprint
        self.saver.save(self.run_dir, self.state.step, groups, meta, keep=self.config.trainer.keep)

    def _save_best(self) -> None:
        meta = {"val_loss": self.state.best, "data": self.material.fingerprint}
        groups = {"model": self.state.model.tensors()}
        self.saver.save(self.run_dir / rundir.BEST, self.state.step, groups, meta, keep=1)

    def _mfu(self, tokens_per_second: float) -> dict[str, float]:
        peak = peak_flops(self.state.device) if self.state.precision != "fp32" else None
        return {"mfu": tokens_per_second * self.flops / peak} if peak and self.flops else {}

    def _count_flops(self) -> float | None:
        if self.config.lora.rank:  # a frozen matrix has no gradient, which the count of a whole model would hold
            return None
        try:
            return flops_per_token(dataclasses.replace(self.config.model, block_size=self.material.length))
        except Exception as error:  # a part from outside may not run without storage; its training is not at stake
            self.display.note(
                f"FLOPs could not be counted ({type(error).__name__}: {str(error).partition(chr(10))[0]})."
            )
            return None

    def _title(self) -> list[str]:
        chosen = rundir.variants(self.config)
        model = self.config.model
        parts = " ".join(chosen[slot] for slot in ("attention", "position", "norm", "mlp", "block"))
        sizes = f"{model.n_layer} layers, {model.n_head} heads, {model.n_embd} wide, context {model.block_size}"
        source, n_ids = self.material.title, self.material.tokenizer.vocab_size
        learning = "" if not self.config.lora.rank else f", {_learning(self.state.model):,} of them learn"
        return [
            f"model   {parts}: {sizes}, {self.state.model.n_parameters():,} parameters{learning}",
            f"data    {chosen['data']} as {chosen['tokenizer']} ({n_ids} ids): {source}",
            f"run     {self.run_dir} on {self.state.device}, {self.state.precision}",
            *self._compiling(),
            *remarks(self.state.model, self.state.device, self.state.precision, self.flops),
        ]

    def _compiling(self) -> list[str]:
        compiles = self.config.trainer.compile == "true"
        return [f"steps   {forecast(compiles, work(self.state))}"] if self.state.device.type == "cpu" else []

    def _draw(self) -> str | None:
        try:
            return str(report.draw_curve(self.run_dir, ruler=self.material.levels))
        except Exception as error:  # a picture is worth less than the run
            self.display.note(f"The curve could not be drawn ({type(error).__name__}: {error}).")
            return None


def _read(path: Path) -> dict[str, Any]:
    """A JSON object that a run left; empty when it is gone."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _learning(model: GPT) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
