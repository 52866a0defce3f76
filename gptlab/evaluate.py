"""python -m gptlab.evaluate RUN: loss, perplexity and bits per byte of a run on a split or a text; others' tasks."""

from __future__ import annotations

import sys

from gptlab import exits


def main(argv: list[str]) -> None:
    """Parse, then print one table, or JSON."""
    parser = exits.Parser(prog="gptlab evaluate", description=__doc__.partition(": ")[2])
    parser.add_run()
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--split", choices=("train", "val"), default="val", help="of the run's own text (default val)")
    which.add_argument("--text", help="a file or directory to evaluate on instead (.txt .md .py .jsonl, .gz)")
    which.add_argument("--tasks", help="tasks of lm-evaluation-harness instead: hellaswag,lambada_openai")
    parser.add_argument("--tasks-dir", help="a folder with tasks of yours (.yaml), for --tasks")
    parser.add_argument("--limit", type=int, help="questions of each task at most")
    parser.add_argument("--shots", type=int, help="answered questions before each; default: as the task says")
    parser.add_argument("--batch", type=int, default=32, help="windows at a time (default 32)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16, fp16 or auto (default fp32)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(argv)
    if options.tasks is not None:
        from gptlab import harness

        return harness.judge(options)
    if (options.tasks_dir, options.limit, options.shots) != (None, None, None):
        parser.error("--tasks-dir, --limit and --shots are about --tasks: name tasks, or leave them out")
    from gptlab import scoring

    return scoring.score(options)


if __name__ == "__main__":
    exits.run(main, sys.argv[1:])
