"""python -m gptlab.check NAME: hold variants to the laws; exit code 1 when one is broken."""

from __future__ import annotations

import json
import os
import sys

from gptlab import exits


def main(argv: list[str]) -> None:
    """Parse, then print one table, or JSON."""
    parser = exits.Parser(prog="gptlab check", description=__doc__.partition(": ")[2])
    names = "attention/flash, or flash; plugins=[./mine.py] adds its own"
    parser.add_argument("names", nargs="*", metavar="NAME", help=names)
    parser.add_argument("--all", action="store_true", help="every registered variant")
    parser.add_argument("--cases", action="store_true", help="a row for every case, not only for the broken ones")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="variants at a time")
    options = parser.parse_args(argv)
    from gptlab import conformance

    verdicts = conformance.check_side_by_side(options.names, options.all, max(1, options.jobs))
    broken = [verdict for verdict in verdicts if not verdict.holds]
    if options.json:
        print(json.dumps([verdict.to_dict() for verdict in verdicts], indent=1))
    else:
        conformance.show(verdicts, options.cases)
        print(f"{len(verdicts) - len(broken)} of {len(verdicts)} verdicts hold.")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    exits.run(main, sys.argv[1:])
