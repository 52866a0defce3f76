"""Does a direction between two texts steer? Several models on a mixture of both, each steered on parts it never saw.

    python scripts/steer_study.py --positive verse.txt --negative prose.txt [--seeds 0,1,2] [--dose 0.125] [KEY=VALUE]

docs/steering.md says what is measured. Further words go to `gptlab train`. Exit code 1 when a seed misses a criterion.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from collections import Counter
from math import log
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RECIPE = {
    "tokenizer": "byte", "model/attention": "flash", "model.n_layer": "4", "model.n_head": "4", "model.n_embd": "128",
    "model.block_size": "128", "model.dropout": "0", "optimizer.lr": "2e-3", "schedule.warmup": "100",
    "trainer.steps": "2000", "trainer.batch_size": "16", "trainer.eval_every": "500", "logger": "none",
}  # fmt: skip
PIECE = 2000  # letters of one text before as many of the other
HELD = 0.1  # of each text, at its end, that no model is trained on
SEEN = 128  # letters by which a classifier tells the texts apart


def prepare(texts: dict[str, str], out: Path) -> dict[str, str]:
    """Write the mixture, equal parts, and the end of each text to steer on; returns what is mixed of each."""
    n = min(map(len, texts.values()))
    border = int(n * (1 - HELD))
    learned = {name: text[:border] for name, text in texts.items()}
    for name, text in texts.items():
        (out / f"{name}.txt").write_text(text[border:n], encoding="utf-8")
    pieces = [text[i : i + PIECE] for i in range(0, border, PIECE) for text in learned.values()]
    (out / "mixture.txt").write_text("\n\n".join(pieces), encoding="utf-8")
    return learned


def separable(learned: dict[str, str], out: Path) -> float:
    """Share of the held-out passages of SEEN letters that naive Bayes over three letters at a time puts right."""
    counts = [Counter(text[i : i + 3] for i in range(len(text) - 2)) for text in learned.values()]
    n_kinds = len(counts[0] | counts[1])

    def score(passage: str, seen: Counter[str]) -> float:
        return sum(log((seen[passage[i : i + 3]] + 1) / (seen.total() + n_kinds)) for i in range(len(passage) - 2))

    right = []
    for which, name in enumerate(learned):
        text = (out / f"{name}.txt").read_text(encoding="utf-8")
        for i in range(0, len(text) - SEEN + 1, SEEN):
            mine, other = (score(text[i : i + SEEN], counts[k]) for k in (which, 1 - which))
            right.append(mine > other)
    return sum(right) / len(right)


def one_seed(seed: int, out: Path, dose: float, words: list[str]) -> dict[str, Any]:
    """Train on the mixture, steer on the rest; return steering.json. A run that was begun goes on, one done stays."""
    run = out / f"seed{seed}"
    recipe = {**RECIPE, **dict(word.split("=", 1) for word in words), "seed": str(seed)}
    settings = [f"{key}={value}" for key, value in recipe.items()]
    summary = run / "summary.json"
    if not summary.is_file():
        shutil.rmtree(run, ignore_errors=True)  # killed before it had begun
        command("train", "data=text", f"data.path={out / 'mixture.txt'}", f"run_dir={run}", *settings)
    elif json.loads(summary.read_text(encoding="utf-8"))["status"] != "done":
        command("train", f"resume={run}")
    texts = ("--positive", str(out / "positive.txt"), "--negative", str(out / "negative.txt"))
    command("steer", str(run), *texts, "--dose", str(dose), "--out", str(run / "steer"))
    found: dict[str, Any] = json.loads((run / "steer" / "steering.json").read_text(encoding="utf-8"))
    return found


def claim(out: Path, asked: dict[str, Any]) -> None:
    """Keep a folder for one question: runs of another would be taken for its own."""
    kept = out / "asked.json"
    if kept.is_file() and (before := json.loads(kept.read_text(encoding="utf-8"))) != asked:
        changed = ", ".join(key for key in asked if asked[key] != before.get(key))
        sys.exit(f"{out} holds the runs of another study ({changed} differ): give another --out, or remove it.")
    out.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(asked, indent=1), encoding="utf-8")


def command(verb: str, *words: str) -> None:
    """`gptlab VERB ...`, in a process of its own, which says itself what is wrong."""
    code = subprocess.run([sys.executable, "-m", f"gptlab.{verb}", *words], stdout=subprocess.DEVNULL).returncode
    if code:
        sys.exit(code)


def show(found: dict[int, dict[str, Any]], told: float) -> None:
    """A row a seed: the effect, the cost, and which criteria are not met."""
    table = Table("seed", "effect", "cost", "wrong way", "not met", box=None)
    for seed, result in found.items():
        full = result["curve"][-1]
        missed = ", ".join(name for name, met in result["criteria"].items() if not met)
        table.add_row(
            str(seed), f"{full['effect']:+.4f}", f"{full['cost']:+.4f}", f"{full['wrong']:.0%}", missed or "none"
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(f"{told:.1%} of held-out passages of {SEEN} letters are told apart by counts of three letters.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--positive", type=Path, required=True, help="a text file")
    parser.add_argument("--negative", type=Path, required=True, help="another")
    parser.add_argument("--seeds", default="0,1,2", help="of training (default 0,1,2)")
    parser.add_argument("--dose", type=float, default=0.125, help="in mean residual norms (default 0.125)")
    parser.add_argument("--out", type=Path, default=Path("runs/steer_study"), help="a folder; done runs in it stay")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="a setting of gptlab train")
    options = parser.parse_args()
    if odd := [word for word in options.words if "=" not in word]:
        parser.error(f"a setting is KEY=VALUE, but {odd[0]!r} has no =")
    texts = {"positive": options.positive.read_text("utf-8"), "negative": options.negative.read_text("utf-8")}
    read = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    claim(options.out, {**read, "settings": sorted(options.words)})
    told = separable(prepare(texts, options.out), options.out)
    found = {
        seed: one_seed(seed, options.out, options.dose, options.words) for seed in map(int, options.seeds.split(","))
    }
    show(found, told)
    (options.out / "study.json").write_text(json.dumps({"separable": told, "seeds": found}, indent=1), encoding="utf-8")
    sys.exit(0 if all(result["steers"] for result in found.values()) else 1)


if __name__ == "__main__":
    main()
