"""python -m gptlab.train: train a model composed from parts. `--help` lists them."""

from __future__ import annotations

import sys

from gptlab import exits


def main(argv: list[str]) -> None:
    """Show the help, which needs no torch, or hand over to Hydra."""
    if {"-h", "--help"} & set(argv):
        from gptlab import help

        named = next((word.partition("=")[2] for word in argv if word.startswith("plugins=")), "")
        help.show_train([plugin.strip() for plugin in named.strip("[]").split(",")])
        return
    from gptlab import cli

    cli.run_hydra(argv)


if __name__ == "__main__":
    exits.run(main, sys.argv[1:])
