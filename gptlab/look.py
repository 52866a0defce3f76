"""python -m gptlab.look RUN: look inside a model: attention maps, logit lens, attribution, heads and more."""

from __future__ import annotations

import sys
from pathlib import Path

from gptlab import exits
from gptlab.inside import VIEWS


def main(argv: list[str]) -> None:
    """Parse, then write the page and print where it is."""
    parser = exits.Parser(prog="gptlab look", description=__doc__.partition(": ")[2])
    parser.add_run()
    parser.add_argument("--text", help="what the model reads (default the beginning of validation)")
    parser.add_argument("--view", action="append", choices=list(VIEWS), help="one of several (default all there are)")
    parser.add_argument("--corrupted", metavar="TEXT", help="for patch: --text with a change, of as many tokens")
    parser.add_argument("--right", help="for patch: what --text goes on with (default what the model says)")
    parser.add_argument("--wrong", help="for patch: what --corrupted goes on with (default what the model says)")
    parser.add_argument("--other", metavar="RUN", help="for compare: another run, of the same tokenizer")
    parser.add_argument("--out", type=Path, help="where the page goes (default RUN/look)")
    options = parser.parse_args(argv)
    from gptlab import looking

    looking.look(options, sys.stdout)


if __name__ == "__main__":
    exits.run(main, sys.argv[1:])
