"""One small HTTP server in the worker: /metrics for Prometheus, /live and /ready for whoever starts and restarts it.

It answers from threads of its own, also while the loop is stuck. There is no login: it shows counts, names of topics
and reasons, never an event, and listens only where `serve.http` says.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from streamdet.serve.health import Health
from streamdet.serve.metrics import Metrics

log = logging.getLogger(__name__)

TEXT: Final = "text/plain; charset=utf-8"
# A client that sends nothing must not hold its thread for ever.
IDLE_S: Final = 10.0


class Answer(NamedTuple):
    """What is sent back."""

    status: HTTPStatus
    body: bytes
    content_type: str = TEXT


Page = Callable[[], Answer]
OK: Final = Answer(HTTPStatus.OK, b"ok\n")
NOT_FOUND: Final = Answer(HTTPStatus.NOT_FOUND, b"not found: there are /metrics, /live and /ready\n")
NOT_ALLOWED: Final = Answer(HTTPStatus.METHOD_NOT_ALLOWED, b"not allowed: GET and HEAD are\n")


def serve(address: str, metrics: Metrics, health: Health) -> "Server":
    """Answer on host:port, from now until the server is closed; port 0 takes a free one.

    Raises:
        OSError: the address cannot be bound.
    """
    host, _, port = address.rpartition(":")
    return Server(
        host,
        int(port),
        {
            "/metrics": lambda: Answer(HTTPStatus.OK, generate_latest(metrics.registry), CONTENT_TYPE_LATEST),
            "/live": lambda: _answer(filter(None, [health.stuck])),
            "/ready": lambda: _answer([f"{cause}: {why}" for cause, why in health.reasons().items()]),
        },
    )


def _answer(reasons: Iterable[str]) -> Answer:
    lines = "".join(f"{' '.join(why.split())}\n" for why in reasons)  # an error may come in several lines
    return Answer(HTTPStatus.SERVICE_UNAVAILABLE, lines.encode()) if lines else OK


class Server:
    """The server, until it is closed."""

    def __init__(self, host: str, port: int, pages: Mapping[str, Page]) -> None:
        self._http = _ThreadingServer((host, port), partial(_Handler, pages))
        # The default interval of 0.5 s between looks at whether to stop would be the time that closing takes.
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(0.1,), name="http", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that it listens on."""
        host, port = self._http.server_address[:2]
        return str(host), int(port)

    def close(self) -> None:
        """Answer no more, and give the port back. Nothing happens the second time."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _ThreadingServer(ThreadingHTTPServer):
    daemon_threads = True
    # A thread that is still answering must not keep the worker from ending.
    block_on_close = False

    def server_bind(self) -> None:
        """Bind, without asking a name server who this is, as the parent's parent does."""
        TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401, ARG002 - as in the parent
        """Log what is wrong here; a client that went away is not."""
        error = sys.exception()
        if not isinstance(error, OSError):
            log.error("http request failed client=%s", client_address[0], exc_info=error)


class _Handler(BaseHTTPRequestHandler):
    timeout = IDLE_S

    def __init__(self, pages: Mapping[str, Page], *args: Any) -> None:  # noqa: ANN401 - as in the parent
        self._pages = pages
        super().__init__(*args)  # answers the request

    def _show(self) -> None:
        page = self._pages.get(urlsplit(self.path).path)
        self._send(NOT_FOUND if page is None else page())

    def _refuse(self) -> None:
        self._send(NOT_ALLOWED)

    # The standard library calls the method that is named after the request's; others it answers with 501.
    do_GET = do_HEAD = _show  # noqa: N815
    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse  # noqa: N815

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        if answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def version_string(self) -> str:
        """What the Server header says: no versions, which would help only those who look for holes."""
        return "streamdet"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the parent
        """Probes come every few seconds: they are no news."""
        log.debug(format, *args)
