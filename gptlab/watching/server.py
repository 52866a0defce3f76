"""A server for this machine alone, of a page that follows runs: JSON for what grows, PNG for views, by GET alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import bottle

from gptlab.config import require
from gptlab.errors import ConfigError, GptlabError
from gptlab.watching.follow import Runs
from gptlab.watching.looks import OFFERED, WITH_TEXT, Looks

HOST = "127.0.0.1"
OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")  # what a browser calls us; any other name is a page from elsewhere
FILES = {"/": "page.html", "/watch.js": "watch.js", "/watch.css": "watch.css"}
POLICY = "default-src 'self'; img-src 'self' blob:; style-src 'self'; script-src 'self'"
MOST = 4000  # rows of a run that a page is given; of more, every second, third, ...


class Threads(ThreadingMixIn, WSGIServer):
    """A view that takes seconds keeps no curve waiting."""

    daemon_threads = True


class Quiet(WSGIRequestHandler):
    """Nothing is printed for a request."""

    def log_message(self, format: str, *args: Any) -> None:
        """Not said."""


def serve(runs: Runs, port: int, said: Callable[[str], None]) -> None:
    """Serve until Ctrl-C. ConfigError where the port is none, or taken."""
    require(0 <= port <= 65535, f"--port must be from 0 to 65535, but is {port}.")
    try:
        server = make_server(HOST, port, application(runs), server_class=Threads, handler_class=Quiet)
    except OSError as error:
        raise ConfigError(f"--port {port} cannot be had ({error.strerror}): name another, or 0 for any.") from error
    with server:
        said(f"http://{HOST}:{server.server_port}/")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            said("Stopped watching; the runs go on.")


def application(runs: Runs) -> bottle.Bottle:
    """The WSGI application: its answers are about these runs and nothing else."""
    app, looks = bottle.Bottle(), Looks()
    app.add_hook("before_request", _from_here)
    app.add_hook("after_request", partial(bottle.response.set_header, "Content-Security-Policy", POLICY))
    for path, name in FILES.items():
        app.get(path, callback=partial(_file, name))
    app.get("/api/runs", callback=lambda: _about(runs))
    app.get("/api/rows", callback=_told(lambda asked: _rows(runs, asked)))
    app.get("/api/samples", callback=_told(lambda asked: {"samples": runs.one(asked.run).samples.look()[1]}))
    app.get("/api/tokens", callback=_told(lambda asked: looks.tokens(_path(runs, asked), asked.text, _step(asked))))
    app.get("/look", callback=_told(lambda asked: _picture(runs, looks, asked)))
    return app


def _from_here() -> None:
    """Refuse what another site's page asks, through a name of its own or ours."""
    host = bottle.request.headers.get("Host", "")
    if host.rpartition(":")[0] not in OWN_NAMES and host not in OWN_NAMES:
        bottle.abort(403, "This page is for this machine alone.")
    site, mode = (bottle.request.headers.get(f"Sec-Fetch-{what}", "none") for what in ("Site", "Mode"))  # of a browser
    if site not in ("none", "same-origin") and mode != "navigate":
        bottle.abort(403, "Another page may lead here, but not ask.")


def _told(answer: Callable[[bottle.FormsDict], Any]) -> Callable[[], Any]:
    """An answer whose errors are one line."""

    def respond() -> Any:
        try:
            return answer(bottle.request.query.decode("utf-8"))
        except (GptlabError, ValueError) as error:  # ValueError: what is no UTF-8, and numbers without end
            return bottle.HTTPResponse(str(error), status=404, headers={"Content-Type": "text/plain; charset=utf-8"})

    return respond


def _file(name: str) -> bytes:
    kinds = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
    bottle.response.content_type = f"{kinds[name.rpartition('.')[2]]}; charset=utf-8"
    return resources.files("gptlab.watching").joinpath(name).read_bytes()


def _about(runs: Runs) -> dict[str, Any]:
    views = [{"name": name, "title": title, "text": name in WITH_TEXT} for name, title in OFFERED.items()]
    return {"runs": [run.about() for run in runs.look()], "views": views}


def _rows(runs: Runs, asked: bottle.FormsDict) -> dict[str, Any]:
    """The rows that the page does not have yet; all of them where a run began again."""
    generation, rows = runs.one(asked.run).metrics.look()
    since = int(asked.since) if asked.since.isdecimal() and asked.generation == str(generation) else 0
    new = rows[since:]
    thin = max(1, len(new) // MOST)
    kept = [_drawable(row) for i, row in enumerate(new) if i % thin == 0 or "val/loss" in row]
    return {"generation": generation, "next": since + len(new), "rows": kept}


def _drawable(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what is no finite number: NaN, which JSON does not know, and the null that a log has for it."""
    return {k: v for k, v in row.items() if v is not None and (not isinstance(v, float) or math.isfinite(v))}


def _picture(runs: Runs, looks: Looks, asked: bottle.FormsDict) -> bytes:
    other = runs.one(asked.other).path if asked.other else None
    place = (_number(asked.layer, "A layer"), _number(asked.head, "A head"))
    image, step = looks.picture(_path(runs, asked), asked.view, asked.text, other, _step(asked), place)
    bottle.response.content_type = "image/png"
    bottle.response.set_header("X-Step", str(step))
    return image


def _path(runs: Runs, asked: bottle.FormsDict) -> Path:
    return runs.one(asked.run).path


def _step(asked: bottle.FormsDict) -> int | None:
    """The checkpoint that is asked for; none: whichever is the newest."""
    return _number(asked.step, "A step")


def _number(word: str, what: str) -> int | None:
    require(word.isdecimal() or not word, f"{what} is a number, but {word!r} is none.")
    return int(word) if word else None
