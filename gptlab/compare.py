"""python -m gptlab.compare DIR...: runs, sweeps or studies side by side: effects, intervals, verdicts, and a page."""

from __future__ import annotations

import sys
from pathlib import Path

from gptlab import exits


def main(argv: list[str]) -> None:
    """Parse, then print the table and write the page."""
    parser = exits.Parser(prog="gptlab compare", description=__doc__.partition(": ")[2])
    parser.add_argument("dirs", nargs="+", type=Path, metavar="DIR", help="of runs, sweeps, studies; or latest")
    parser.add_argument("--metric", help="a key of metrics.jsonl (default val/loss, or what the study declares)")
    parser.add_argument("--baseline", help="the arm that the others are compared with (default the first)")
    parser.add_argument("--margin", type=float, help="a difference below this does not matter (default 0.005)")
    parser.add_argument("--out", type=Path, help="where the page goes (default the study itself, or runs/comparison/)")
    options = parser.parse_args(argv)
    from rich.console import Console

    from gptlab import rundirs
    from gptlab.comparison import page, runs, table

    asked = {"metric": options.metric, "baseline": options.baseline, "margin": options.margin}
    comparison = runs.read(options.dirs, **asked)
    own = comparison.plan is not None and set(asked.values()) == {None}  # what the plan declared, and nothing else
    table.show(Console(), comparison, page.verdict_of(comparison))
    for record in comparison.failures():
        print(f"  {record.failure()}")
    print(page.write(comparison, options.out or (comparison.path if own else rundirs.fresh(None, "comparison"))))


if __name__ == "__main__":
    exits.run(main, sys.argv[1:])
