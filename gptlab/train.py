"""python -m gptlab.train: train a model composed from parts. `--help` lists them."""

from __future__ import annotations

import sys

from gptlab import exits


def main(argv: list[str]) -> None:
    """Show the help, which needs no torch, or hand over to Hydra."""
    if {"-h", "--help"} & set(argv):
        from gptlab import help

        help.show_train(argv)
        return
    from gptlab import cli

    cli.run_hydra(argv)


if __name__ == "__main__":
    exits.run(main, sys.argv[1:])
