"""python -m gptlab.tune: a search for hyper-parameters, through Optuna. `--help` says what can be set."""

from __future__ import annotations

import sys

from gptlab import exits


def main(argv: list[str]) -> None:
    """Show the help, which needs no torch, or search."""
    if {"-h", "--help"} & set(argv):
        from gptlab import help
        from gptlab.studies.space import TuneConfig

        help.show_tune(TuneConfig)
        return
    from gptlab import cli, launching
    from gptlab.studies.search import tune

    if tune(argv, cli.compose, launching.at_a_time, launching.gpus):
        sys.exit(1)


if __name__ == "__main__":
    exits.run(main, sys.argv[1:])
