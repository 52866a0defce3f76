"""python -m gptlab.list [SLOT | NAME]: what there is to choose from, or all that is known of one variant."""

from __future__ import annotations

import sys

from gptlab import exits


def main(argv: list[str]) -> None:
    """Parse, then print a table or cards, or JSON."""
    parser = exits.Parser(prog="gptlab list", description=__doc__.partition(": ")[2])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="attention, attention/flash or flash; plugins=[./mine.py] adds its own"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(argv)
    from gptlab import listing

    listing.show(options.names, options.json)


if __name__ == "__main__":
    exits.run(main, sys.argv[1:])
