"""python -m gptlab.check NAME: hold variants to the laws; exit code 1 when one is broken."""

from __future__ import annotations

import argparse
import json
import sys

from gptlab import exits


def main(argv: list[str]) -> None:
    """Parse, then print one table, or JSON."""
    parser = argparse.ArgumentParser(prog="gptlab check", description=__doc__.partition(": ")[2])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="attention/flash, or flash; plugins=[./mine.py] adds its own"
    )
    parser.add_argument("--all", action="store_true", help="every registered variant")
    parser.add_argument("--cases", action="store_true", help="a row for every case, not only for the broken ones")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(argv)
    from rich.console import Console

    from gptlab import conformance

    with Console(stderr=True).status("building the cases") as status:
        variants = conformance.choose(options.names, options.all)
        verdicts = list(conformance.check(variants, watch=status.update))
    broken = [verdict for verdict in verdicts if not verdict.holds]
    if options.json:
        print(json.dumps([verdict.to_dict() for verdict in verdicts], indent=1))
    else:
        Console().print(conformance.table(verdicts, options.cases))
        print(f"{len(verdicts) - len(broken)} of {len(verdicts)} verdicts hold.")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    exits.run(main, sys.argv[1:])
