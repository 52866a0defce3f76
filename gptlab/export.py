"""python -m gptlab.export RUN --to hf DIR: a run as a directory of config, weights and tokenizer for transformers."""

from __future__ import annotations

import sys

from gptlab import exits


def main(argv: list[str]) -> None:
    """Parse, then write the directory, whole or not at all."""
    parser = exits.Parser(prog="gptlab export", description=__doc__.partition(": ")[2])
    parser.add_run()
    parser.add_argument(
        "--to", nargs=2, required=True, metavar=("FORMAT", "DIR"), help="hf, and a directory that is new or empty"
    )
    parser.add_argument(
        "--custom-code", action="store_true", help="with the model's sources, for what has no class in transformers"
    )
    options = parser.parse_args(argv)
    from gptlab import exporting

    exporting.export(options, sys.stdout)


if __name__ == "__main__":
    exits.run(main, sys.argv[1:])
