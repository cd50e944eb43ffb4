"""A server outside, over TLS on this machine: what it is asked is kept, what it answers a test says.

It is reached by names as the internet's are; its certificate, for `photos.example.com` and its CDN, lies in `tls/`.
"""

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from orchestrator.storage import outward

TLS = Path(__file__).parent / "tls"
HOST = "photos.example.com"
Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass(frozen=True)
class Received:
    """One request as it came; header names in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Outside:
    """What came, and what is answered: by path, else by `answer`, else the `statuses` in their order, then 204."""

    port: int
    received: list[Received] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)
    answer: Answer | None = None
    statuses: list[int] = field(default_factory=list)

    @property
    def asked(self) -> list[tuple[str, str]]:
        """Whom it was asked as, and for what."""
        return [(each.headers["host"], each.path) for each in self.received]

    def url(self, path: str = "/hook", host: str = HOST) -> str:
        return f"https://{host}:{self.port}{path}"

    def says(self, path: str, status: int, body: bytes = b"", **headers: str) -> str:
        """Let it answer so to a path; gives the path's URL."""
        self.answers[path] = lambda handler: say(handler, status, body, **headers)
        return self.url(path)

    def clear(self) -> None:
        """Forget what came and what was to be answered."""
        for kept in (self.received, self.answers, self.statuses):
            kept.clear()
        self.answer = None

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        body = handler.rfile.read(int(headers.get("content-length", 0)))
        self.received.append(Received(handler.path, headers, body))
        with suppress(BrokenPipeError, ConnectionResetError):
            if (answer := self.answers.get(handler.path, self.answer)) is not None:
                return answer(handler)
            say(handler, self.statuses.pop(0) if self.statuses else 204)


@contextmanager
def listen() -> Iterator[Outside]:
    """A server for the length of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            outside.serve(self)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass

    http = Quiet(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")
    http.socket = context.wrap_socket(http.socket, server_side=True, do_handshake_on_connect=False)
    outside = Outside(http.server_address[1])
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield outside
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def lead_outside(patch: pytest.MonkeyPatch) -> None:
    """Let every name lead to this machine, its address count as public, and the server's certificate be trusted."""
    patch.setattr(outward, "find_addresses", lambda host, port: ["127.0.0.1"])
    patch.setattr(outward, "is_public", lambda address: True)
    trusted = outward.watch(ssl.create_default_context(cafile=str(TLS / "certificate.pem")))
    patch.setattr(outward, "trust", lambda: trusted)


def say(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    """Answer."""
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)
