"""What a bench is asked: the flags that are its own, and the overrides of a training. Needs no torch."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from gptlab import exits
from gptlab.config import LAYER_SLOTS, require
from gptlab.errors import ConfigError, did_you_mean

SLOTS = (*LAYER_SLOTS, "optimizer")  # whose variants a step can tell apart
IDLE = ("trainer.log_every", "trainer.eval_", "trainer.save", "trainer.sample_", "trainer.keep",
        "trainer.patience", "logger", "name")  # fmt: skip
EPILOG = """examples:
  gptlab bench model=gpt2 trainer.batch_size=4 model.vocab_size=50304
  gptlab bench experiment=shakespeare_char_cpu trainer.compile=true --profile
  gptlab bench --components attention --only softmax,linear,gated_delta
  gptlab bench model=gpt2 model.vocab_size=50304 --decode --batch 16
"""


@dataclass(frozen=True)
class Request:
    """The words of a command line after `gptlab bench`."""

    words: tuple[str, ...] = ()  # overrides, as gptlab train takes them
    steps: int = 30  # timed
    warmup: int = 5  # before them
    components: str | None = None  # the slot whose variants are timed
    only: tuple[str, ...] = ()  # those of them that are
    rounds: int = 3  # turns that each variant, or each decoding, has
    decode: bool = False
    batch: int = 8  # texts at a time, beside one
    tokens: int = 200  # new ones of a text
    prompt: int = 16  # tokens of a prompt
    compile: bool = False  # the decoding of a token, as one graph
    profile: bool = False
    out: str | None = None  # directory of the results
    command: str = ""

    @property
    def idle(self) -> list[str]:
        """The overrides that change nothing here: what happens between steps."""
        return [word for word in self.words if word.startswith(IDLE)]


MODES = {  # flag -> when it means something
    "steps": "not with --decode",
    "warmup": "not with --decode",
    "only": "with --components",
    "rounds": "with --components or --decode",
    "batch": "with --decode",
    "tokens": "with --decode",
    "prompt": "with --decode",
    "compile": "with --decode",
    "profile": "without --components and --decode",
}


def read(argv: Sequence[str]) -> Request:
    """The request. ConfigError in one line for what means nothing; `--help` prints and exits."""
    given = {key: value for key, value in vars(_parser().parse_intermixed_args(argv)).items() if value is not None}
    given["words"] = tuple(given["words"])
    if "only" in given:
        given["only"] = tuple(word.strip() for word in given["only"].split(","))
    asked = Request(**given, command=shlex.join(["gptlab", "bench", *argv]))
    _check(asked, given)
    return asked


def _parser() -> argparse.ArgumentParser:
    default = {field.name: field.default for field in fields(Request)}
    parser = exits.Parser(
        prog="gptlab bench", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        description="Time a training step, the variants of a slot, or decoding. Nothing is kept but the figures.",
    )  # fmt: skip
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="overrides, as gptlab train takes them")
    whole = {
        "steps": f"steps that are timed (default {default['steps']})",
        "warmup": f"steps before them, which compile and allocate (default {default['warmup']})",
        "rounds": f"turns of each variant, or of each decoding (default {default['rounds']})",
        "batch": f"texts decoded side by side, beside one alone (default {default['batch']})",
        "tokens": f"new tokens of a text (default {default['tokens']})",
        "prompt": f"tokens of a prompt (default {default['prompt']})",
    }
    for name, meaning in whole.items():
        parser.add_argument(f"--{name}", type=int, metavar="N", help=meaning)
    parser.add_argument("--components", metavar="SLOT", help=f"time every variant of a slot: {', '.join(SLOTS)}")
    parser.add_argument("--only", metavar="A,B", help="of the slot, these variants and presets")
    parser.add_argument("--decode", action="store_true", help="time the writing of text")
    parser.add_argument(
        "--compile", action="store_true", help="decode by a compiled step (a training: trainer.compile)"
    )
    parser.add_argument("--profile", action="store_true", help="write a trace of three steps, and name what takes long")
    parser.add_argument("--out", metavar="DIR", help="where the figures go (default a new directory in runs/bench)")
    return parser


def _check(asked: Request, given: dict[str, Any]) -> None:
    """ConfigError for a number that cannot be, and for a flag that would have no effect."""
    require(not (asked.decode and asked.components), "--decode and --components are two questions: ask one at a time.")
    for name, least in (("steps", 2), ("warmup", 1), ("rounds", 1), ("batch", 1), ("tokens", 2), ("prompt", 1)):
        value = getattr(asked, name)
        require(value >= least, f"--{name} must be at least {least}, but is {value}.")
    mode = "decode" if asked.decode else "components" if asked.components else "step"
    means = {
        "step": {"steps", "warmup", "profile"},
        "components": {"steps", "warmup", "only", "rounds"},
        "decode": {"batch", "tokens", "prompt", "rounds", "compile"},
    }
    for name, when in MODES.items():
        told = given.get(name) not in (None, False)
        require(not told or name in means[mode], f"--{name} has an effect {when} alone: leave it out.")
    if asked.components and asked.components not in SLOTS:
        raise ConfigError(f"A step has no slot named {asked.components!r}. {did_you_mean(asked.components, SLOTS)}")
    for word in asked.words:
        require("=" in word, f"gptlab bench takes KEY=VALUE and flags, but {word!r} is neither.")
        require(not word.startswith("run_dir="), f"A bench is no run, so {word!r} would have no effect: say --out DIR.")
