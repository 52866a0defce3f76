"""python -m gptlab.watch RUN...: a page in the browser that follows runs as they train, on this machine alone."""

from __future__ import annotations

import sys

from gptlab import exits

PORT = 8013


def main(argv: list[str]) -> None:
    """Parse, then serve until Ctrl-C."""
    parser = exits.Parser(prog="gptlab watch", description=__doc__.partition(": ")[2])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="directories of runs, studies or sweeps; or latest")
    parser.add_argument("--port", type=int, default=PORT, help=f"of 127.0.0.1 (default {PORT}; 0: any that is free)")
    parser.add_argument("--open", action="store_true", help="open the browser at once")
    options = parser.parse_args(argv)
    from gptlab.watching import server
    from gptlab.watching.follow import Runs, named

    def said(line: str) -> None:
        print(line, flush=True)
        if options.open and line.startswith("http"):
            import webbrowser

            webbrowser.open(line)

    server.serve(Runs(named(options.runs)), options.port, said)


if __name__ == "__main__":
    exits.run(main, sys.argv[1:])
