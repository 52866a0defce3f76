"""One trial of a search in a process of its own: each value is told on standard output, and an answer waited for.

`python -m gptlab.studies.worker FILE METRIC`, for as long as whoever started it holds its standard input open.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptlab import exits, points
from gptlab.errors import Interrupted, Pruned

ON, PRUNE = "on", "prune"


def main(argv: list[str]) -> None:
    """Run the point of an order file; whoever reads its values may end it."""
    told = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else is printed goes to the log
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(answers,), daemon=True).start()

    def watch(row: Mapping[str, Any]) -> None:
        print(json.dumps([row["step"], row.get(argv[1])]), file=told)
        if answers.get() == PRUNE:
            raise Pruned

    status = points.carry_out(Path(argv[0]), watch)
    if status == "interrupted":
        raise Interrupted
    sys.exit(status == "failed")


def _listen(answers: queue.SimpleQueue[str]) -> None:
    """Hand on answers until whoever gives them is gone, and end at once: the trial is run again by whoever goes on."""
    for line in sys.stdin:
        answers.put(line.strip())
    os._exit(1)


if __name__ == "__main__":
    exits.run(main)
