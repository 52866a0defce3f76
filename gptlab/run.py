"""One run from its config to its summary: text, model, directory, logs, training, and going on after a stop."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gptlab import checkpoint, data, lora, ngram, pretrained, registry, report, rundir, rundirs, tokenizer
from gptlab.compiling import maybe_compile
from gptlab.config import RunConfig, require, to_dict
from gptlab.cost import flops_per_token
from gptlab.data import Dataset
from gptlab.display import Display, make_display
from gptlab.errors import DataError, GptlabError, TrainingError
from gptlab.evaluation import bits_per_byte, evaluate
from gptlab.hardware import autocast, choose_device, choose_precision, describe, peak_flops, versions
from gptlab.model import GPT
from gptlab.ngram import Ruler
from gptlab.optimizer import parameter_groups
from gptlab.remarks import remarks
from gptlab.runlog import RunLog, WandbLog, open_wandb, rewind, write_summary
from gptlab.sampling import Draw, check_length, generate, prompt_ids
from gptlab.stopping import stop_requests
from gptlab.tokenizer import Tokenizer
from gptlab.trainer import Actions, Batch, Status, TrainState, train

OUT_OF_MEMORY = (
    "Out of memory: lower trainer.batch_size (and raise trainer.accumulate by as much to keep the batch), "
    "model.block_size, model.n_embd or model.n_layer."
)


def start(config: RunConfig, command: Mapping[str, Any]) -> tuple[Status, Path]:
    """Train a new run. Everything that can be wrong is found before its directory exists."""
    display = make_display()
    config = rundir.whole(config)
    run_dir = rundirs.fresh(config.run_dir, config.name)
    check(config)
    plan = config.trainer  # a run goes on in the precision that it began in, wherever that is
    plan.precision = choose_precision(plan.precision, choose_device(plan.device))
    dataset = prepare(config, pretrained.tokenizer_of(config), display)
    state = make_state(config, dataset, display)
    run = Run(config, run_dir, dataset, measure(dataset, display), state, display)
    run.check_sample()
    rundir.write(run_dir, config, dataset.tokenizer, command)
    return run.train(), run_dir


def go_on(wanted: str, changes: Mapping[str, Any]) -> tuple[Status, Path]:
    """Continue a run from its newest good checkpoint, or from its beginning when it was stopped before the first."""
    run_dir = rundirs.find(wanted)
    config = rundir.changed(rundir.read_config(run_dir), run_dir, changes)
    check(config)
    display = make_display()
    own = config.init and (run_dir / rundirs.TOKENIZER).is_file()  # what the weights brought may be gone by now
    text = tokenizer.load(run_dir / rundirs.TOKENIZER) if own else pretrained.tokenizer_of(config)
    dataset = prepare(config, text, display)
    saved = checkpoint.newest(run_dir) is not None
    state = make_state(config, dataset, display, fresh=not saved)
    if saved:
        restore(state, run_dir, dataset, display)
    require(
        state.step < state.config.steps,
        f"{run_dir} is done: it has trained all {state.config.steps} steps. To go on, raise trainer.steps.",
    )
    require(
        not state.stopped_early,
        f"{run_dir} stopped early, {state.waited} evaluations after its best. To go on, raise trainer.patience.",
    )
    run = Run(config, run_dir, dataset, measure(dataset, display), state, display)
    run.check_sample()
    rundir.write_config(run_dir, config)  # with what was changed, so that the next one to go on finds it
    rewind(run_dir, state.step)
    display.note(f"Going on with {run_dir} after step {state.step:,}.")
    return run.train(), run_dir


def check(config: RunConfig) -> None:
    """Build everything without storage and text: what cannot be is refused before a file is read or written."""
    choose_precision(config.trainer.precision, choose_device(config.trainer.device))
    known = dataclasses.replace(config.model, vocab_size=config.model.vocab_size or 1)
    if known.document_mask and known.separator is None:
        known.separator = 0  # the tokenizer's, which is not known yet
    with torch.device("meta"), contextlib.suppress(RuntimeError):  # a part that needs storage is built with it, later
        model = GPT(known)
        if config.lora.rank:
            lora.adapt(model, config.lora)
    registry.build("optimizer", config.optimizer, [{"params": [torch.nn.Parameter(torch.zeros(1))]}])
    registry.build("schedule", config.schedule, config.trainer.steps)


def prepare(config: RunConfig, text: Tokenizer, display: Display) -> Dataset:
    """The text as tokens, with a vocabulary and lengths that the model can take."""
    source = registry.build("data", config.data)
    dataset = data.prepare(source, text, report=display.note)
    dataset.require(config.model.block_size)
    vocabulary = dataset.vocab_size
    config.model.vocab_size = config.model.vocab_size or vocabulary
    if config.model.document_mask and config.model.separator is None:
        config.model.separator = _separator(dataset, source.by_line)
    require(
        config.model.vocab_size >= vocabulary,
        f"model.vocab_size must cover the tokenizer's {vocabulary} ids, but is {config.model.vocab_size}: leave it.",
    )
    return dataset


def measure(dataset: Dataset, display: Display) -> Ruler:
    """The n-gram ruler of the text: counted once, then found beside its tokens."""
    if not ngram.is_kept(dataset):
        display.note("Counting n-grams for the ruler, once for this text.")
    return ngram.ruler(dataset)


def make_state(config: RunConfig, dataset: Dataset, display: Display, *, fresh: bool = True) -> TrainState:
    """A model with its initial values (drawn ones, or where it is `fresh` those of `init`), and what trains it."""
    plan = config.trainer
    device = choose_device(plan.device)
    reduced = device.type == "cuda" and plan.precision != "fp32"  # what parts keep out of autocast: as TensorFloat-32
    torch.set_float32_matmul_precision("high" if reduced else "highest")
    try:
        model = GPT(config.model, config.seed)
        if config.init and fresh:
            pretrained.fill(model, config.init, display.note)
        if config.lora.rank:
            lora.adapt(model, config.lora, config.seed)
        model = model.to(device)
    except (RuntimeError, MemoryError) as error:
        raise _explained(error) from error
    return TrainState(
        model=model,
        optimizer=registry.build("optimizer", config.optimizer, parameter_groups(model)),
        schedule=registry.build("schedule", config.schedule, plan.steps),
        config=plan,
        seed=config.seed,
        device=device,
        precision=choose_precision(plan.precision, device),
        loss=maybe_compile(model.loss, plan.compile, device, display.note),
    )


def restore(state: TrainState, run_dir: Path, dataset: Dataset, display: Display) -> None:
    """Take parameters, optimizer state and counters of the newest good checkpoint, bit for bit."""
    saved = checkpoint.load(run_dir, note=display.note, device=state.device)
    held = saved.meta["data"]
    if held != dataset.fingerprint:
        raise DataError(
            f"{run_dir} was trained on another text than the one its config finds now: bring that text back."
        )
    state.model.load_tensors(saved.tensors["model"])
    names = {parameter: name for name, parameter in state.model.named_parameters()}
    checkpoint.restore_optimizer(state.optimizer, names, saved.tensors["optimizer"], saved.meta["optimizer"])
    if state.precision == "fp16":
        state.scaler.load_state_dict(saved.meta["scaler"])
    state.step, state.seconds, state.n_bad = saved.step, saved.meta["seconds"], saved.meta["skipped"]
    state.bad.fill_(state.n_bad)
    state.best_step, state.waited = saved.meta.get("best_step", 0), saved.meta.get("waited", 0)
    state.best, state.last = (math.inf if x is None else x for x in (saved.meta["best"], saved.meta["last"]))


@dataclass
class Run:
    """A run under way: what the trainer calls between its steps, and what is written when it ends."""

    config: RunConfig
    run_dir: Path
    dataset: Dataset
    ruler: Ruler
    state: TrainState
    display: Display
    log: RunLog = field(init=False)
    train_loss: float | None = None  # newest
    flops: float | None = None  # per token

    def train(self) -> Status:
        """Train to the end, to a stop, or to a failure; whichever it is, summary.json tells."""
        self.flops = self._count_flops()
        self.display.start(self.config.trainer.steps, self._title(), ruler=self.levels)
        self.log = RunLog(self.run_dir, display=self.display)
        write_summary(self.run_dir, self.summary("running"))
        try:
            with stop_requests(self.log.note) as stopping:
                self.log.wandb = self._open_wandb()
                actions = Actions(self._log, self._evaluate, self._sample, self._save, stopping, self._save_best)
                status = train(self.state, self._batch, actions, self._mfu)
        except BaseException as error:
            self._close("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", str(error))
            raise _explained(error) from error
        if self.state.stopped_early:
            self.log.note(
                f"Stopped early at step {self.state.step}: no evaluation was better than that of step "
                f"{self.state.best_step} for {self.state.waited} times."
            )
        self._close(status)
        return status

    def _open_wandb(self) -> WandbLog | None:
        about = {**to_dict(self.config), "variants": rundir.variants(self.config)}
        names = {"name": self.run_dir.name, "project": self.config.name}
        return open_wandb(self.config.logger, self.run_dir, **names, config=about, note=self.display.note)

    def _close(self, status: str, error: str | None = None) -> None:
        self.log.close({**self.summary(status, error), "curve": self._draw() if self.state.step else None})

    @property
    def levels(self) -> dict[int, float]:
        """The ruler on the validation split: order -> nats per token."""
        return dict(enumerate(self.ruler.val, start=1))

    def summary(self, status: str, error: str | None = None) -> dict[str, Any]:
        """What summary.json holds."""
        state = self.state
        fit = self.dataset.bytes_per_token("val")
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
            "val_bpb": bits_per_byte(state.last, fit) if known else None,
            "ruler": self.levels,
            "counted_bigram": {"train": self.ruler.train_bigram, "val": self.ruler.val_bigram},
            "parameters": state.model.n_parameters(),
            "trained_parameters": _learning(state.model),
            "flops_per_token": self.flops,
            "peak_flops": peak_flops(state.device),
            "tokens": state.step * state.tokens_per_step,
            "seconds": state.seconds,
            "skipped_steps": state.n_bad,
            "precision": state.precision,
            "variants": rundir.variants(self.config),
            "hardware": describe(state.device),
            "versions": versions(),
            "data": self.dataset.fingerprint,
            "run_dir": str(self.run_dir),
        }

    def check_sample(self) -> None:
        """What no sample can be drawn with is an error before the first step, not at the first sample."""
        Draw(temperature=self.config.trainer.sample_temperature)
        check_length(self.state.model, len(prompt_ids(self.dataset.tokenizer, self.config.trainer.sample_prompt)), 1)

    def _batch(self, step: int) -> Batch:
        plan = self.config.trainer
        n = plan.batch_size * plan.accumulate
        block_size = self.config.model.block_size
        return data.sample_batch(self.dataset.train, seed=self.config.seed, step=step, n=n, block_size=block_size)

    def _log(self, row: Mapping[str, Any]) -> None:
        self.train_loss = row.get("train/loss", self.train_loss)
        self.log.metrics(row)

    def _evaluate(self) -> dict[str, float]:
        loss = evaluate(
            self.state.model,
            self.dataset.val,
            batch_size=self.config.trainer.batch_size,
            autocast=autocast(self.state.device, self.state.precision),
        )
        return {"val/loss": loss, "val/bpb": bits_per_byte(loss, self.dataset.bytes_per_token("val"))}

    def _sample(self) -> None:
        plan, model = self.config.trainer, self.state.model
        prompt = prompt_ids(self.dataset.tokenizer, plan.sample_prompt)
        room = plan.sample_tokens if model.position.limit is None else model.position.limit + 1 - len(prompt)
        draw = Draw(temperature=plan.sample_temperature)
        seed, n_tokens = self.config.seed + self.state.step, min(plan.sample_tokens, room)
        with autocast(self.state.device, self.state.precision):
            drawn = [token for (token,) in generate(model, prompt, n_tokens, draw=draw, seeds=[seed])]
        known = [token for token in drawn if token < self.dataset.vocab_size]  # the ids of padding are no text
        self.log.sample(self.state.step, self.config.trainer.sample_prompt + self.dataset.tokenizer.decode(known))

    def _save(self) -> None:
        state = self.state
        names = {parameter: name for name, parameter in state.model.named_parameters()}
        tensors, rest = checkpoint.optimizer_tensors(state.optimizer, names)
        meta = {
            "optimizer": rest,
            "scaler": state.scaler.state_dict(),
            "seconds": state.seconds,
            "skipped": state.n_bad,
            "best": state.best if math.isfinite(state.best) else None,
            "best_step": state.best_step,
            "waited": state.waited,
            "last": state.last if math.isfinite(state.last) else None,
            "data": self.dataset.fingerprint,
        }
        groups = {"model": state.model.tensors(), "optimizer": tensors}
        checkpoint.save(self.run_dir, state.step, groups, meta, keep=self.config.trainer.keep)

    def _save_best(self) -> None:
        meta = {"val_loss": self.state.best, "data": self.dataset.fingerprint}
        groups = {"model": self.state.model.tensors()}
        checkpoint.save(self.run_dir / rundir.BEST, self.state.step, groups, meta, keep=1)

    def _mfu(self, tokens_per_second: float) -> dict[str, float]:
        peak = peak_flops(self.state.device) if self.state.precision != "fp32" else None
        return {"mfu": tokens_per_second * self.flops / peak} if peak and self.flops else {}

    def _count_flops(self) -> float | None:
        if self.config.lora.rank:  # a frozen matrix has no gradient, which the count of a whole model would hold
            return None
        try:
            return flops_per_token(self.config.model)
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
        learning = "" if not self.config.lora.rank else f", {_learning(self.state.model):,} of them learn"
        splits = f"{len(self.dataset.train):,} train and {len(self.dataset.val):,} validation tokens"
        return [
            f"model   {parts}: {sizes}, {self.state.model.n_parameters():,} parameters{learning}",
            f"data    {chosen['data']} as {chosen['tokenizer']} ({self.dataset.vocab_size} ids): {splits}",
            f"run     {self.run_dir} on {self.state.device}, {self.state.precision}",
            *remarks(self.state.model, self.state.device, self.state.precision, self.flops),
        ]

    def _draw(self) -> str | None:
        try:
            return str(report.draw_curve(self.run_dir, ruler=self.levels))
        except Exception as error:  # a picture is worth less than the run
            self.display.note(f"The curve could not be drawn ({type(error).__name__}: {error}).")
            return None


def _learning(model: GPT) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _separator(dataset: Dataset, by_line: bool) -> int:
    """The id that ends a document. ConfigError when the tokenizer has none, or needs several for it."""
    ids = dataset.tokenizer.separator_ids()
    way_out = "choose tokenizer=bpe or gpt2, which have an end of text, or give model.separator=ID"
    name = dataset.tokenizer.name
    require(len(ids) == 1, f"model.document_mask needs one id, but tokenizer {name!r} has {len(ids)}: {way_out}.")
    require(
        by_line or dataset.tokenizer.end_of_text is not None,
        f"model.document_mask needs an id that only ends documents, but tokenizer {name!r} ends them with a line "
        f"break, as it does lines: {way_out}, or train on documents of one line (data.lines=true).",
    )
    return ids[0]


def _explained(error: BaseException) -> BaseException:
    """Out of memory, and what a disk refuses on the way, as a line about the training; anything else as it is."""
    words = ("out of memory", "can't allocate memory", "alloc_failed")
    exhausted = isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)
    if isinstance(error, GptlabError):
        return TrainingError(str(error))
    return TrainingError(OUT_OF_MEMORY) if exhausted and isinstance(error, Exception) else error
