"""python -m gptlab.bench [overrides]: how long a step takes and where the time goes; of variants; of decoding."""

from __future__ import annotations

import sys

from gptlab import exits


def main(argv: list[str]) -> None:
    """Read the words, which needs no torch, then time what they ask for."""
    from gptlab.benchmarking import request

    asked = request.read(argv)
    from gptlab import cli
    from gptlab.benchmarking import session

    session.bench(asked, cli.compose)


if __name__ == "__main__":
    exits.run(main, sys.argv[1:])
