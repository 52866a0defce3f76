"""gptlab VERB ...: the console script, and `python -m gptlab`."""

from __future__ import annotations

import importlib
import sys

from gptlab import exits


def dispatch(argv: list[str]) -> None:
    """Call the door that the first word names."""
    from gptlab import completion, help

    if not argv or argv[0] in ("-h", "--help"):
        help.show_verbs()
    elif argv[0] == "completion":
        print(completion.script(argv[1] if len(argv) > 1 else "bash"), end="")
    elif argv[0] == "complete":
        from gptlab.studies.settings import StudyConfig

        print("\n".join(completion.candidates(argv[1] if len(argv) > 1 else "", StudyConfig)))
    elif argv[0] in help.VERBS:
        importlib.import_module(f"gptlab.{argv[0]}").main(argv[1:])
    else:
        raise completion.did_not_match(argv[0])


def main() -> None:
    """The entry point of the console script."""
    exits.run(dispatch, sys.argv[1:])


if __name__ == "__main__":
    main()
