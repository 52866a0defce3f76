"""python -m gptlab.steer RUN: add a direction to the residual stream; what it does, costs, and makes a model write."""

from __future__ import annotations

import sys
from pathlib import Path

from gptlab import exits


def main(argv: list[str]) -> None:
    """Parse, then print the table and the text, and write the page."""
    parser = exits.Parser(prog="gptlab steer", description=__doc__.partition(": ")[2])
    parser.add_run()
    parser.add_argument("--positive", metavar="TEXT", help="a file or folder of texts to steer towards (.txt .jsonl)")
    parser.add_argument("--negative", metavar="TEXT", help="and away from; half of both finds, the other half measures")
    parser.add_argument("--lines", action="store_true", help="every line of them is a text of its own")
    parser.add_argument("--window", type=int, help="tokens of a passage at most (default block_size)")
    parser.add_argument("--passages", type=int, help="of each at most, evenly over it (default 128)")
    parser.add_argument("--layer", type=int, help="steer after this one, from 0; -1: the last (default the middle)")
    parser.add_argument("--method", choices=("mean", "pca"), help="mean difference (default), or of pairs the first PC")
    parser.add_argument(
        "--direction", action="append", metavar="FILE[:WEIGHT]", help="one saved before; several add up"
    )
    parser.add_argument("--dose", type=float, default=0.25, help="in mean residual norms; below 0: away (default 0.25)")
    parser.add_argument("--prompt", default="", help="what texts begin with; empty: the border between documents")
    parser.add_argument("--tokens", type=int, help="new tokens (default 150, or as many as the position allows)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest token (default 0.8)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn, the same at every dose (default 0)")
    parser.add_argument("--batch", type=int, default=16, help="passages at a time; changes nothing else (default 16)")
    parser.add_argument("--out", type=Path, help="where the page goes (default a folder of the run, under steer/)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    options = parser.parse_args(argv)
    from gptlab.steering import session

    session.steer(options, argv)


if __name__ == "__main__":
    exits.run(main, sys.argv[1:])
