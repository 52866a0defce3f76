"""python -m gptlab.study: arms and seeds, run, compared and judged. `--help` says what can be set."""

from __future__ import annotations

import sys

from gptlab import exits


def main(argv: list[str]) -> None:
    """Show the help, which needs no torch, or conduct the study."""
    if {"-h", "--help"} & set(argv):
        from gptlab import help
        from gptlab.studies.settings import StudyConfig

        help.show_study(argv, StudyConfig)
        return
    from gptlab import cli, launching
    from gptlab.studies.conduct import conduct

    if conduct(argv, cli.compose, launching.launch, launching.at_a_time, launching.verify):
        sys.exit(1)


if __name__ == "__main__":
    exits.run(main, sys.argv[1:])
