"""Peak memory and time of preparing a large text: `python scripts/measure_prepare.py --gigabytes 1 --tokenizer byte`.

Writes a synthetic text of that size, prepares it in a process of its own, and prints what that process used.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import tempfile
import time
from pathlib import Path


def write_text(path: Path, gigabytes: float) -> None:
    """Lines of made-up words, some of them not ASCII: one MB of it, again and again with another number."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlucmfåé", k=draw.randint(1, 9))) for _ in range(20_000)]
    part = "\n".join(" ".join(draw.choices(words, k=12)) for _ in range(14_000))
    with path.open("w", encoding="utf-8") as file:
        number = 0
        while file.tell() < gigabytes * 1e9:
            file.write(f"part {number}\n{part}\n")
            number += 1


def prepare_once(path: Path, tokenizer: str, cache: Path) -> None:
    """Prepare the text and print the time taken and the most memory this process has held."""
    from gptlab.data import prepare
    from gptlab.registry import build

    started = time.perf_counter()
    source = build("data", {"name": "text", "path": str(path)})
    prepare(source, build("tokenizer", tokenizer), cache_dir=cache, report=print)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts it in KiB
    print(
        f"{path.stat().st_size / 1e9:.2f} GB, {tokenizer}: {time.perf_counter() - started:.1f} s, peak {peak:.0f} MiB"
    )


def main() -> None:
    """Measure one size and one tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--tokenizer", default="byte")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        write_text(text, wanted.gigabytes)
        arguments = (text, wanted.tokenizer, Path(folder))
        process = multiprocessing.get_context("spawn").Process(target=prepare_once, args=arguments)
        process.start()  # a fresh process: its peak is that of preparing alone
        process.join()


if __name__ == "__main__":
    main()
