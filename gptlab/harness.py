"""A run judged by others: lm-evaluation-harness asks in text, our model answers in log-probabilities and in text.

Gao et al. 2021, doi:10.5281/zenodo.5371628.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from gptlab.config import require, require_choice
from gptlab.errors import ConfigError, DataError
from gptlab.evaluation import require_order
from gptlab.hardware import autocast, choose_device, choose_precision
from gptlab.model import GPT
from gptlab.rundir import load
from gptlab.rundirs import find
from gptlab.sampling import Draw, generate, prompt_ids, unpaddable
from gptlab.tokenizer import Tokenizer

try:
    from lm_eval import evaluator, simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager
except ImportError:
    raise ConfigError("--tasks asks through lm-evaluation-harness: pip install 'gptlab[eval]'.") from None

evaluator.get_git_commit_hash = lambda: None  # git would complain of the working directory; nobody reads the hash
ANSWER = 256  # tokens of a generated answer where the task does not say
RESAMPLES = 1000  # for the standard errors that need a bootstrap

Pair = tuple[list[int], list[int]]  # what is given, and what is to be scored after it


def judge(options: argparse.Namespace) -> None:
    """Print what `gptlab evaluate RUN --tasks ...` was asked for."""
    require(options.batch >= 1, f"--batch must be at least 1, but is {options.batch}.")
    require(options.limit is None or options.limit >= 1, f"--limit must be at least 1, but is {options.limit}.")
    require(options.shots is None or options.shots >= 0, f"--shots must be 0 or more, but is {options.shots}.")
    require_choice("--precision", options.precision, ("auto", "fp32", "bf16", "fp16"))
    device = choose_device(options.device)
    precision = choose_precision(options.precision, device)
    model, tokenizer = load(find(options.run), step=options.step, note=_say)
    require_order(model)
    judged = Judged(model.to(device), tokenizer, batch_size=options.batch, autocast=autocast(device, precision))
    result = evaluate(judged, options.tasks.split(","), options.tasks_dir, limit=options.limit, shots=options.shots)
    if options.json:
        print(json.dumps(result))
    else:
        _print(result)


def evaluate(
    judged: Judged, names: list[str], folder: str | None = None, *, limit: int | None = None, shots: int | None = None
) -> dict[str, Any]:
    """Task or group -> its numbers, in the harness's words. `folder` has tasks of the user's own beside the known."""
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # it would start a process for every core to draw a bootstrap
    with contextlib.redirect_stdout(sys.stderr):  # where the harness tells how far it is
        found = simple_evaluate(
            judged,
            tasks=names,
            task_manager=_tasks(names, folder),
            limit=limit,
            num_fewshot=shots,
            bootstrap_iters=RESAMPLES,
            log_samples=False,
        )
    return {name: {key: _plain(value) for key, value in numbers.items()} for name, numbers in found["results"].items()}


class Tasks(TaskManager):  # type: ignore[misc]  # the library has no types
    """The harness's tasks by name; what keeps their questions from being read is one line."""

    def load(self, names: list[str]) -> Any:
        """Tasks and groups with their questions, downloaded when they are not there. DataError when that fails."""
        try:
            return super().load(names)
        except Exception as error:  # of datasets, the Hub or the network, each with classes of its own
            reason = " ".join(str(error).split())[:300]
            raise DataError(
                f"The questions of {','.join(names)} cannot be read ({type(error).__name__}: {reason}): they are "
                "downloaded when first asked for; connect, or copy HF_HOME from a machine that has them."
            ) from None


def _tasks(names: list[str], folder: str | None) -> Tasks:
    """The tasks of `folder`, and where one of `names` is not among them those of the harness, which takes seconds."""
    require(folder is None or Path(folder).is_dir(), f"--tasks-dir must be a folder with tasks, but {folder} is none.")
    tasks = Tasks(include_path=folder, include_defaults=False)
    if not set(names) <= set(tasks.all_tasks):
        tasks = Tasks(include_path=folder)
    for name in set(names) - set(tasks.all_tasks):
        near = "".join(f" Did you mean {word!r}?" for word in difflib.get_close_matches(name, tasks.all_tasks, n=1))
        raise ConfigError(f"There is no task {name!r}.{near} `lm-eval ls tasks` lists them, --tasks-dir adds yours.")
    return tasks


class Judged(LM):  # type: ignore[misc]  # the library has no types
    """A model and its tokenizer as the harness knows them. Log-probabilities are in nats."""

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, *, batch_size: int, autocast: AbstractContextManager[Any] | None = None
    ) -> None:
        super().__init__()
        self.model, self.text, self.n_batch = model, tokenizer, batch_size
        self.autocast = autocast or contextlib.nullcontext()
        self._device = next(model.parameters()).device

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability of each second text after the first, and whether it is what greedy decoding gives."""
        return self.score([self._pair(*request.args) for request in requests])

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text."""
        return [total for total, _ in self.score([self._pair("", request.args[0]) for request in requests])]

    def _pair(self, given: str, scored: str) -> Pair:
        """Ids of both texts. Spaces between them are scored; where nothing is given, it is the border of documents."""
        known = self.text.encode(given.rstrip())
        return known or prompt_ids(self.text, "")[-1:], self.text.encode(given + scored)[len(known) :]

    @torch.no_grad()
    def score(self, pairs: list[Pair]) -> list[tuple[float, bool]]:
        """For each pair the log-probability of its second part, and whether each token of it is the likeliest."""
        windows = [(i, *window) for i, pair in enumerate(pairs) for window in self._windows(*pair)]
        windows.sort(key=lambda window: len(window[1]), reverse=True)  # batches of like lengths; the longest first
        totals, likeliest = [0.0] * len(pairs), [True] * len(pairs)
        for start in range(0, len(windows), self.n_batch):
            batch = windows[start : start + self.n_batch]
            nats, best = self._read([(tokens, n) for _, tokens, n in batch])
            for (i, _, n), total, is_best in zip(batch, _sums(nats, batch), _sums(best, batch), strict=True):
                totals[i] -= total
                likeliest[i] &= is_best == n
        return list(zip(totals, likeliest, strict=True))

    def _windows(self, given: list[int], scored: list[int]) -> Iterator[tuple[list[int], int]]:
        """Tokens of at most a block and the next one, of which the last n are scored: each of `scored` once."""
        whole, size = given + scored, self.model.config.block_size
        for begin in range(len(given), len(whole), size):
            end = min(begin + size, len(whole))
            yield whole[max(0, end - size - 1) : end], end - begin

    def _read(self, batch: list[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """The cross entropy of every scored token, row by row, and whether it is the likeliest."""
        width = max(len(tokens) for tokens, _ in batch) - 1
        x, y = torch.zeros(len(batch), width, dtype=torch.long), torch.full((len(batch), width), -1)
        for row, (tokens, n) in enumerate(batch):  # what is filled up at the right is seen by nothing before it
            x[row, : len(tokens) - 1] = torch.tensor(tokens[:-1])
            y[row, len(tokens) - 1 - n : len(tokens) - 1] = torch.tensor(tokens[len(tokens) - n :])
        x, y = x.to(self._device), y.to(self._device)
        with self.autocast:
            logits = self.model.logits(self.model.hidden(x)[0][y >= 0])  # of scored tokens only
        logits, y = logits.to(torch.promote_types(logits.dtype, torch.float32)), y[y >= 0]
        return F.cross_entropy(logits, y, reduction="none").cpu(), (logits.argmax(-1) == y).cpu()

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """A continuation of each text, up to a stop of its task; those that are drawn alike side by side."""
        answers = [""] * len(requests)
        asked = [(prompt_ids(self.text, given), settings) for given, settings in (r.args for r in requests)]
        alike: dict[str, list[int]] = {}
        for i, (prompt, settings) in enumerate(asked):
            width = "" if unpaddable(self.model) is None else len(prompt)  # those cannot be filled up to one length
            alike.setdefault(f"{settings} {width}", []).append(i)
        for rows in alike.values():
            rows.sort(key=lambda i: len(asked[i][0]), reverse=True)
            for start in range(0, len(rows), self.n_batch):
                batch = rows[start : start + self.n_batch]
                answered = self._answers([asked[i][0] for i in batch], asked[batch[0]][1])
                for i, answer in zip(batch, answered, strict=True):
                    answers[i] = answer
        return answers

    def _answers(self, prompts: list[list[int]], settings: dict[str, Any]) -> list[str]:
        limit = self.model.position.limit
        n_tokens = next((settings[key] for key in ("max_gen_toks", "max_new_tokens") if key in settings), ANSWER)
        room = self.model.config.block_size
        if limit is not None:  # question and answer share the positions there are, the answer at most half of them
            n_tokens = min(n_tokens, (limit + 1) // 2)
            room = min(room, limit + 1 - n_tokens)
        stops = settings.get("until") or []
        stops = [stop for stop in ([stops] if isinstance(stops, str) else stops) if stop]
        answers = [Answer(self.text, stops) for _ in prompts]
        with self.autocast:
            drawn = generate(self.model, [prompt[-room:] for prompt in prompts], n_tokens, draw=_draw(settings))
            for tokens in drawn:
                for answer, token in zip(answers, tokens, strict=True):
                    answer.add(token)
                if all(answer.ended for answer in answers):
                    break
        return [answer.text for answer in answers]


class Answer:
    """A text that grows by tokens until one of its stops, before which it ends, or the end of the text."""

    def __init__(self, tokenizer: Tokenizer, stops: list[str]) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        self.drawn: list[int] = []
        self.text, self.ended = "", False

    def add(self, token: int) -> None:
        """One token more, for a text that has not ended."""
        if self.ended or token == self.tokenizer.end_of_text:
            self.ended = True
            return
        if token < self.tokenizer.vocab_size:  # the ids of padding are no text
            self.drawn.append(token)
        text = self.tokenizer.decode(self.drawn)
        found = [text.index(stop) for stop in self.stops if stop in text]
        self.text, self.ended = text[: min(found, default=len(text))], bool(found)


def _draw(settings: dict[str, Any]) -> Draw:
    """How a task wants tokens drawn: the likeliest, unless it says do_sample. A top_k of 0 or -1 is none."""
    if not settings.get("do_sample", False):
        return Draw(temperature=0.0)
    top_k = settings.get("top_k") or 0
    temperature, top_p = settings.get("temperature", 1.0), settings.get("top_p")
    return Draw(temperature=temperature, top_k=top_k if top_k > 0 else None, top_p=top_p)


def _sums(values: torch.Tensor, batch: list[tuple[int, list[int], int]]) -> list[float]:
    """The sum over each window's scored tokens."""
    return [part.double().sum().item() for part in values.split([n for _, _, n in batch])]


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else str(value)


def _print(result: dict[str, Any]) -> None:
    table = Table.grid(padding=(0, 2))
    for task, numbers in result.items():
        for key, value in numbers.items():
            metric, _, how = key.partition(",")  # acc,none: the metric, and the filter of the answers
            error = numbers.get(f"{metric}_stderr,{how}")
            if how and not metric.endswith("_stderr") and isinstance(value, int | float):
                spread = f"± {error:.4f}" if isinstance(error, int | float) else ""
                table.add_row(task, metric + (f" ({how})" if how != "none" else ""), f"{value:.4f}", spread)
    Console(highlight=False).print(table)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
