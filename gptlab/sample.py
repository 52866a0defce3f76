"""python -m gptlab.sample RUN: let the model of a run write, token by token."""

from __future__ import annotations

import sys

from gptlab import exits


def main(argv: list[str]) -> None:
    """Parse, then write to standard output as the tokens come."""
    parser = exits.Parser(prog="gptlab sample", description=__doc__.partition(": ")[2])
    parser.add_run()
    parser.add_argument("--prompt", default="", help="what the text begins with; empty: the border between documents")
    parser.add_argument(
        "--tokens", type=int, help="new tokens (default 300, or as many as the position encoding allows)"
    )
    parser.add_argument("--temperature", type=float, help="0: always the likeliest token (default 0.8)")
    parser.add_argument("--greedy", action="store_true", help="the same as --temperature 0")
    parser.add_argument("--top-k", type=int, help="draw from the k likeliest tokens")
    parser.add_argument("--top-p", type=float, help="draw from the fewest tokens that hold this probability")
    parser.add_argument("--min-p", type=float, help="draw from tokens at least this share as likely as the likeliest")
    parser.add_argument("--seed", type=int, default=0, help="sample i is drawn with seed + i (default 0)")
    parser.add_argument("--samples", type=int, default=1, help="how many texts (default 1)")
    parser.add_argument(
        "--batch", type=int, default=8, help="texts drawn side by side; changes nothing else (default 8)"
    )
    parser.add_argument("--stop", help="end a text before this string")
    parser.add_argument(
        "--compile", action="store_true", help="compile a step: half a minute once, then faster; for very long texts"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    options = parser.parse_args(argv)
    from gptlab import writing

    writing.write(options, sys.stdout)


if __name__ == "__main__":
    exits.run(main, sys.argv[1:])
