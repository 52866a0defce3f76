"""What a run learns from and is judged on: a text, with its n-gram ruler; the questions of a task; pairs."""

from __future__ import annotations

import hashlib
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gptlab import data, ngram, registry
from gptlab.config import RunConfig, TrainerConfig, require
from gptlab.data import IGNORE, Dataset
from gptlab.evaluation import Answers, answer, bits_per_byte, evaluate
from gptlab.model import GPT
from gptlab.pairs import Pairs
from gptlab.sampling import Draw, check_length, generate, prompt_ids
from gptlab.tasks import SymbolTokenizer, Task
from gptlab.tasks.draws import Array
from gptlab.text import Pair, PairSource
from gptlab.tokenizer import Tokenizer

Note = Callable[[str], None]
Batch = tuple[Tensor, Tensor]  # tokens (B, T), and the token after each, or -100
Reduced = AbstractContextManager[Any]  # the precision to compute in
SHOWN = 4  # questions in a sample
DEFAULT = registry.name_of("tokenizer", RunConfig().tokenizer)


class Material(ABC):
    """One of these, prepared for a config: batches by step, a judgement of a model, a sample of what it can do."""

    tokenizer: Tokenizer
    fingerprint: str  # equal for two runs exactly when they saw the same
    length: int  # tokens fed in a sequence of training
    levels: Mapping[int, float]  # what needs no model: order of an n-gram -> nats; the 0-gram is a uniform guess

    def __init__(self, config: RunConfig) -> None:
        self.config, self.plan = config, config.trainer

    @property
    @abstractmethod
    def title(self) -> str:
        """How much there is, in a few words."""

    @abstractmethod
    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """What a step learns from, or these rows of it: a function of the seed and the step alone."""

    @abstractmethod
    def evaluate(self, model: GPT, reduced: Reduced) -> dict[str, float]:
        """val/loss in nats and what else is measured on validation, in the part that trainer.eval_part names."""

    @property
    @abstractmethod
    def measured(self) -> tuple[str, ...]:
        """The names of what `evaluate` measures."""

    @abstractmethod
    def check_sample(self, model: GPT) -> None:
        """ConfigError where a sample could not be made."""

    @abstractmethod
    def sample(self, model: GPT, step: int, reduced: Reduced) -> str:
        """Something the model writes, to be looked at."""

    @abstractmethod
    def summary(self, loss: float | None, measured: Mapping[str, float]) -> dict[str, Any]:
        """What summary.json says of it, with the newest validation loss and the newest of what `evaluate` measured."""

    @property
    def signature(self) -> str:
        """16 digits that are equal for two runs which learn from the same batches, in the same order, to the end."""
        sizes = (self.plan.steps, self.plan.batch_size, self.plan.accumulate, self.length)
        digest = hashlib.sha256(json.dumps([self.fingerprint, self.config.seed, *sizes]).encode())
        for tensor in self.batch(0):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def n_sequences(self) -> int:
        """Sequences in a step."""
        return self.plan.batch_size * self.plan.accumulate

    def _fit_vocabulary(self) -> None:
        model, vocabulary = self.config.model, self.tokenizer.vocab_size
        model.vocab_size = model.vocab_size or vocabulary
        require(
            model.vocab_size >= vocabulary,
            f"model.vocab_size must cover the tokenizer's {vocabulary} ids, but is {model.vocab_size}: leave it.",
        )


def prepare(config: RunConfig, tokenizer: Tokenizer, note: Note, words: Sequence[str] = ()) -> Material:
    """The text, task or pairs of a config, whose model gets the vocabulary; `words` are those of the command line.

    The tokenizer of a task is its own. ConfigError where another was named.
    """
    source = registry.build("data", config.data)
    if isinstance(source, Task):
        named = any(re.match(r"\+{0,2}tokenizer[.=]", word) for word in words)
        return Questioned(config, source, tokenizer, named)
    if isinstance(source, PairSource):
        return Paired(config, source, tokenizer)
    require(
        not config.model.has_source,
        "model.attention.causal=prefix sees a source both ways, but a text has none: choose data=pairs, or leave "
        "causal out.",
    )
    return Text(config, data.prepare(source, tokenizer, report=note), source.by_line, note)


class Text(Material):
    """A text as tokens: windows of block_size, judged by one pass over validation, beside the ruler."""

    def __init__(self, config: RunConfig, dataset: Dataset, by_line: bool, note: Note) -> None:
        super().__init__(config)
        self.dataset, self.length = dataset, config.model.block_size
        self.tokenizer, self.fingerprint = dataset.tokenizer, dataset.fingerprint
        dataset.require(self.length)
        if config.model.document_mask and config.model.separator is None:
            config.model.separator = _separator(dataset.tokenizer, by_line)
        self._fit_vocabulary()
        if not ngram.is_kept(dataset):
            note("Counting n-grams for the ruler, once for this text.")
        self.ruler = ngram.ruler(dataset)
        whole = self.plan.eval_part == "all"  # the ruler measures no half of the split
        self.levels = dict(enumerate(self.ruler.val, start=1)) if whole else {}

    @property
    def title(self) -> str:
        return f"{len(self.dataset.train):,} train and {len(self.dataset.val):,} validation tokens"

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        train, seed = self.dataset.train, self.config.seed
        return data.sample_batch(train, seed=seed, step=step, n=self.n_sequences, block_size=self.length, rows=rows)

    @property
    def measured(self) -> tuple[str, ...]:
        return ("val/loss", "val/bpb")

    def evaluate(self, model: GPT, reduced: Reduced) -> dict[str, float]:
        tokens = data.part_of(self.dataset.val, self.plan.eval_part)
        loss = evaluate(model, tokens, batch_size=self.plan.batch_size, autocast=reduced)
        return {"val/loss": loss, "val/bpb": bits_per_byte(loss, self.dataset.bytes_per_token("val"))}

    def check_sample(self, model: GPT) -> None:
        """What no sample can be drawn with is an error before the first step, not at the first sample."""
        Draw(temperature=self.plan.sample_temperature)
        check_length(model, len(prompt_ids(self.tokenizer, self.plan.sample_prompt)), 1)

    def sample(self, model: GPT, step: int, reduced: Reduced) -> str:
        plan = self.plan
        prompt = prompt_ids(self.tokenizer, plan.sample_prompt)
        room = plan.sample_tokens if model.position.limit is None else model.position.limit + 1 - len(prompt)
        draw = Draw(temperature=plan.sample_temperature)
        seed, n_tokens = self.config.seed + step, min(plan.sample_tokens, room)
        with reduced:
            drawn = [token for (token,) in generate(model, prompt, n_tokens, draw=draw, seeds=[seed])]
        known = [token for token in drawn if token < self.tokenizer.vocab_size]  # the ids of padding are no text
        return plan.sample_prompt + self.tokenizer.decode(known)

    def summary(self, loss: float | None, measured: Mapping[str, float]) -> dict[str, Any]:
        bigram = {"train": self.ruler.train_bigram, "val": self.ruler.val_bigram}
        bits = None if loss is None else bits_per_byte(loss, self.dataset.bytes_per_token("val"))
        return {"val_bpb": bits, "ruler": self.levels, "counted_bigram": bigram}


class Answered(Material):
    """What has right answers, to questions that are kept for validation: judged by the share that is right."""

    n_answer: int  # different answers to one place, for the level of chance

    def summary(self, loss: float | None, measured: Mapping[str, float]) -> dict[str, Any]:
        chance = {"loss": self.levels[0], "accuracy": 1 / self.n_answer}
        shares = {key.partition("/")[2]: value for key, value in measured.items() if not key.startswith("val/loss")}
        return {"accuracy": shares or None, "chance": chance, "ruler": {}}

    def _answers(self, model: GPT, questions: Batch, reduced: Reduced) -> Answers:
        return answer(model, *questions, batch_size=self.plan.batch_size, autocast=reduced)

    def _part(self, inputs: Array, targets: Array) -> Batch:
        """Questions in the part of validation that is judged."""
        half = len(inputs) // 2
        part = {"all": slice(None), "first": slice(half), "second": slice(half, None)}[self.plan.eval_part]
        return torch.from_numpy(inputs[part]), torch.from_numpy(targets[part])


class Questioned(Answered):
    """A task: fresh questions in every batch, judged by the share of right answers to fixed ones, of several sizes."""

    def __init__(self, config: RunConfig, task: Task, tokenizer: Tokenizer, named: bool) -> None:
        super().__init__(config)
        self.task, self.tokenizer = task, SymbolTokenizer.of(task.symbols)
        _check_task(config, task, tokenizer, named)
        self.fingerprint, self.length = task.fingerprint(), task.n_tokens(task.length)
        self.n_answer, self.levels = task.n_answer, {0: math.log(task.n_answer)}
        config.tokenizer = {"name": self.tokenizer.name}
        _end_sources(config, task.symbols.index("=") if "=" in task.symbols else None)
        self._fit_vocabulary()
        self.validation = cache(self._validation)

    @property
    def title(self) -> str:
        task = self.task
        beyond = f", also judged at {', '.join(map(str, task.lengths))}" if task.lengths else ""
        kept, chance = (
            len(self.validation(task.length)[0]),
            f"chance {1 / task.n_answer:.4f}, {self.levels[0]:.4f} nats",
        )
        return f"questions of {self.length} tokens, {kept:,} kept for validation{beyond}; {chance}"

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        inputs, targets = self.task.batch(self.config.seed, step, self.n_sequences)
        return torch.from_numpy(inputs[rows]), torch.from_numpy(targets[rows])

    @property
    def measured(self) -> tuple[str, ...]:
        beyond = ["", *(f"@{size}" for size in self.task.lengths if size != self.task.length)]
        return tuple(f"val/{what}{at}" for what in ("loss", "accuracy", "solved") for at in beyond)

    def evaluate(self, model: GPT, reduced: Reduced) -> dict[str, float]:
        row: dict[str, float] = {}
        for size in self.task.sizes:
            at = "" if size == self.task.length else f"@{size}"
            found = self._answers(model, self.validation(size), reduced)
            row |= {f"val/loss{at}": found.loss, f"val/accuracy{at}": found.accuracy, f"val/solved{at}": found.solved}
        return row

    def check_sample(self, model: GPT) -> None:
        """ConfigError, too, where the longest questions have no position."""
        size, limit = max(self.task.sizes), model.position.limit
        n_tokens = self.task.n_tokens(size)
        require(
            limit is None or n_tokens <= limit,
            f"model.block_size must cover the longest questions where positions end: those of size {size} have "
            f"{n_tokens} tokens, but this position encoding ends at {limit}: raise it, or lower data.lengths.",
        )

    def sample(self, model: GPT, step: int, reduced: Reduced) -> str:
        inputs, targets = (x[:SHOWN] for x in self.validation(self.task.length))
        guesses = self._answers(model, (inputs, targets), reduced).guesses
        return "\n".join(self._written(*rows) for rows in zip(inputs, targets, guesses, strict=True))

    def _written(self, inputs: Tensor, targets: Tensor, guesses: Tensor) -> str:
        """A question and the model's answers in their places; after a wrong one, what had been right."""
        symbols = [self.task.symbols[int(inputs[0])]]
        wrong = 0
        for place, (target, guess) in enumerate(zip(targets.tolist(), guesses.tolist(), strict=True), start=1):
            if target == IGNORE:
                symbols += [self.task.symbols[int(i)] for i in inputs[place : place + 1]]
            else:
                said = self.task.symbols[guess] if guess < len(self.task.symbols) else "?"
                symbols.append(said if guess == target else f"{said}(not {self.task.symbols[target]})")
                wrong += guess != target
        return f"{' '.join(symbols)}   {f'{wrong} wrong' if wrong else 'right'}"

    def _validation(self, size: int) -> Batch:
        return self._part(*self.task.validation(size))


class Paired(Answered):
    """Pairs: targets alone are learnt, judged by their loss and the share of them that is said exactly, to the end."""

    def __init__(self, config: RunConfig, source: PairSource, tokenizer: Tokenizer) -> None:
        super().__init__(config)
        self.pairs, self.tokenizer = Pairs(source, tokenizer), tokenizer
        self.fingerprint, self.length = self.pairs.fingerprint(), self.pairs.width
        require(
            self.length <= config.model.block_size,
            f"model.block_size must cover every pair, but is {config.model.block_size}, and line "
            f"{self.pairs.longest.line} of {source.path} has {self.length} tokens: raise it to {self.length}.",
        )
        _check_settings(config, "pairs", self.length)
        self.n_answer, self.levels = tokenizer.vocab_size, {0: math.log(tokenizer.vocab_size)}
        _end_sources(config, self.pairs.separator)
        self._fit_vocabulary()
        self.validation = self._part(*self.pairs.validation())

    @property
    def title(self) -> str:
        kept = f"{len(self.validation[0]):,} of {len(self.pairs.val):,} kept for validation are judged"
        return f"{len(self.pairs.train):,} pairs of {self.length} tokens at most, {kept}"

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        inputs, targets = self.pairs.batch(self.config.seed, step, self.n_sequences, rows)
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    @property
    def measured(self) -> tuple[str, ...]:
        return ("val/loss", "val/accuracy", "val/solved")

    def evaluate(self, model: GPT, reduced: Reduced) -> dict[str, float]:
        found = self._answers(model, self.validation, reduced)
        return {"val/loss": found.loss, "val/accuracy": found.accuracy, "val/solved": found.solved}

    def check_sample(self, model: GPT) -> None:
        """A pair that can be learnt can be said."""

    def sample(self, model: GPT, step: int, reduced: Reduced) -> str:
        with reduced:
            return "\n".join(self._said(model, pair) for pair in self.pairs.val[:SHOWN])

    def _said(self, model: GPT, pair: Pair) -> str:
        """The source, what the model says of it, and where that is wrong the target."""
        n_tokens, ids = len(self.tokenizer.encode(pair.target)) + 1, list[int]()
        for (token,) in generate(model, self.pairs.prompt(pair.source), n_tokens, draw=Draw(temperature=0)):
            ids.append(token)
            if token == self.pairs.end:
                break
        known = [token for token in ids if token < self.tokenizer.vocab_size and token != self.pairs.end]
        said = self.tokenizer.decode(known) + ("" if ids[-1] == self.pairs.end else "...")
        return f"{pair.source} -> {said}   {'right' if said == pair.target else f'not {pair.target}'}"


def _check_settings(config: RunConfig, name: str, n_tokens: int) -> None:
    """ConfigError for settings of text, where there is none but questions of so many tokens."""
    require(
        config.trainer.tokens_per_step is None or n_tokens == config.model.block_size,
        f"trainer.tokens_per_step counts sequences of model.block_size tokens, but a question of data={name} has "
        f"{n_tokens}: set model.block_size={n_tokens}, or say trainer.accumulate.",
    )
    require(not config.model.document_mask, f"data={name} has no documents: leave model.document_mask out.")
    usual = TrainerConfig()
    for setting in ("sample_prompt", "sample_tokens", "sample_temperature"):
        require(
            getattr(config.trainer, setting) == getattr(usual, setting),
            f"data={name} samples its own questions, decoded greedily to their ends: leave trainer.{setting} out.",
        )


def _end_sources(config: RunConfig, end: int | None) -> None:
    """Let a model that sees sources both ways know what ends them. ConfigError where nothing does."""
    if config.model.has_source:
        require(
            end is not None,
            "model.attention.causal=prefix sees a source both ways, but the questions of this task have no = to end "
            "one: choose data=pairs, or leave causal out.",
        )
        config.model.source_end = end


def _check_task(config: RunConfig, task: Task, tokenizer: Tokenizer, named: bool) -> None:
    """ConfigError for what a task leaves no room for: another tokenizer, a short context, settings of text."""
    name, n_tokens = f"data={task.name}", task.n_tokens(task.length)
    own = tokenizer.name == SymbolTokenizer.name and tokenizer.learned in (None, task.symbols)
    require(
        own or (tokenizer.name == DEFAULT and not named and config.init is None),
        f"{name} brings its own symbols, so tokenizer={tokenizer.name} cannot choose others: leave it out.",
    )
    require(
        n_tokens <= config.model.block_size,
        f"model.block_size must cover a question of {name}, {n_tokens} tokens, but is {config.model.block_size}: "
        f"raise it to {n_tokens}, or make the questions shorter.",
    )
    _check_settings(config, task.name, n_tokens)


def _separator(tokenizer: Tokenizer, by_line: bool) -> int:
    """The id that ends a document. ConfigError when the tokenizer has none, or needs several for it."""
    ids = tokenizer.separator_ids()
    way_out = "choose tokenizer=bpe or gpt2, which have an end of text, or give model.separator=ID"
    name = tokenizer.name
    require(len(ids) == 1, f"model.document_mask needs one id, but tokenizer {name!r} has {len(ids)}: {way_out}.")
    require(
        by_line or tokenizer.end_of_text is not None,
        f"model.document_mask needs an id that only ends documents, but tokenizer {name!r} ends them with a line "
        f"break, as it does lines: {way_out}, or train on documents of one line (data.lines=true).",
    )
    return ids[0]
