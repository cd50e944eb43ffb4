"""Images over https: from a real TLS server on this machine, whose certificate lies beside this file."""

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from orchestrator.settings import Settings
from workers import download as downloads
from workers.download import download, is_allowed, is_public
from workers.source import SourceError, fetch

TLS = Path(__file__).parent / "tls"
HOST = "photos.example.com"
SETTINGS = Settings(allowed_hosts=(HOST, "*.cdn.example.com"), max_image_bytes=100_000)
Answer = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """What the server answers by path, and whom it was asked as."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, str]] = []

    def url(self, path: str, host: str = HOST) -> str:
        return f"https://{host}:{self.port}{path}"

    def says(self, path: str, status: int, body: bytes = b"", **headers: str) -> str:
        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(body)

        self.answers[path] = answer
        return self.url(path)


@pytest.fixture(scope="module")
def listening() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            script.asked.append((self.headers["Host"], self.path))
            with suppress(BrokenPipeError, ConnectionResetError):
                script.answers[self.path](self)

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass

    http = Quiet(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")
    http.socket = context.wrap_socket(http.socket, server_side=True, do_handshake_on_connect=False)
    script = Server(http.server_address[1])
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield script
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def server(listening: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, reached by any name; for the test its address counts as public and its certificate is trusted."""
    listening.answers.clear()
    listening.asked.clear()
    monkeypatch.setattr(downloads, "find_addresses", lambda host, port: ["127.0.0.1"])
    monkeypatch.setattr(downloads, "is_public", lambda address: True)
    monkeypatch.setattr(downloads, "_trust", lambda: ssl.create_default_context(cafile=str(TLS / "certificate.pem")))
    return listening


def refuse(url: str, settings: Settings = SETTINGS) -> SourceError:
    with pytest.raises(SourceError) as caught:
        download(url, settings)
    assert url[:100] in str(caught.value)
    return caught.value


def test_an_image_is_fetched_whole(server: Server) -> None:
    url = server.says("/a%20b.jpg?size=l", 200, b"photo" * 1000)
    assert fetch(url, "/folder", SETTINGS) == b"photo" * 1000
    assert server.asked == [(f"{HOST}:{server.port}", "/a%20b.jpg?size=l")]


def test_a_redirect_is_followed_to_an_allowed_host_only(server: Server) -> None:
    server.says("/end.jpg", 200, b"photo")
    server.says("/cdn", 302, Location=server.url("/end.jpg", "eu.cdn.example.com"))
    assert download(server.says("/start", 301, Location="/cdn"), SETTINGS) == b"photo"
    assert [host.partition(":")[0] for host, _ in server.asked] == [HOST, HOST, "eu.cdn.example.com"]
    away = refuse(server.says("/away", 302, Location="https://evil.example.net/x.jpg"))
    assert (away.code, away.error_class) == ("host_not_allowed", "input")
    assert "evil.example.net" in str(away)
    assert refuse(server.says("/down", 302, Location=f"http://{HOST}/x.jpg")).code == "unsupported_scheme"
    assert refuse(server.says("/file", 302, Location="file:///etc/passwd")).code == "unsupported_scheme"
    assert refuse(server.says("/round", 302, Location="/round")).code == "too_many_redirects"
    assert len([path for _, path in server.asked if path == "/round"]) == 4


@pytest.mark.parametrize(
    ("status", "code", "error_class"),
    [
        (404, "image_missing", "input"),
        (410, "image_missing", "input"),
        (403, "image_forbidden", "input"),
        (400, "http_status", "input"),
        (204, "http_status", "input"),
        (429, "source_unavailable", "transient"),
        (408, "source_unavailable", "transient"),
        (500, "source_unavailable", "transient"),
        (503, "source_unavailable", "transient"),
    ],
)
def test_a_status_is_put_in_our_words(server: Server, status: int, code: str, error_class: str) -> None:
    error = refuse(server.says("/x.jpg", status))
    assert (error.code, error.error_class) == (code, error_class)
    assert f"status {status}" in str(error)


def test_too_many_bytes_are_refused_whatever_the_header_says(server: Server) -> None:
    assert len(download(server.says("/ok", 200, b"x" * 100_000), SETTINGS)) == 100_000
    assert refuse(server.says("/large", 200, b"x" * 100_001)).code == "image_too_large"

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b"x" * 65536)

    server.answers["/endless"] = endless
    assert refuse(server.url("/endless")).code == "image_too_large"


def test_a_cut_answer_is_transient(server: Server) -> None:
    error = refuse(server.says("/cut", 200, b"half", **{"Content-Length": "1000"}))
    assert (error.code, error.error_class) == ("source_unavailable", "transient")


def test_a_slow_answer_ends_at_the_deadline(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"x" * 100)
            time.sleep(0.02)

    server.answers["/drip"] = drip
    monkeypatch.setattr(downloads, "CHUNK_BYTES", 100)
    monkeypatch.setattr(downloads, "TOTAL_TIMEOUT_S", 0.2)
    error = refuse(server.url("/drip"))
    assert (error.code, error.error_class) == ("source_unavailable", "transient")
    assert "not finished within" in str(error)


def test_a_silent_server_is_transient(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "READ_TIMEOUT_S", 0.1)
    server.answers["/silent"] = lambda handler: time.sleep(0.5)
    assert refuse(server.url("/silent")).error_class == "transient"


def test_a_server_that_is_gone_is_transient(server: Server) -> None:
    assert refuse(f"https://{HOST}:9/x.jpg").code == "source_unavailable"


def test_a_certificate_of_another_name_is_refused(server: Server) -> None:
    settings = SETTINGS.model_copy(update={"allowed_hosts": ("*",)})
    server.says("/x.jpg", 200, b"photo")
    error = refuse(server.url("/x.jpg", "other.example.org"), settings)
    assert (error.code, error.error_class) == ("tls_failed", "input")
    assert server.asked == []


def test_a_certificate_that_nobody_vouches_for_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_trust", ssl.create_default_context)
    server.says("/x.jpg", 200, b"photo")
    assert refuse(server.url("/x.jpg")).code == "tls_failed"


# Whom we do not ask


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "192.168.1.1", "::1", "fd00::1", "0.0.0.0"]
)
def test_a_host_that_leads_inside_is_refused(listening: Server, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    listening.asked.clear()
    settings = SETTINGS.model_copy(update={"allowed_hosts": ("*",)})
    # One public address among them does not help.
    monkeypatch.setattr(downloads, "find_addresses", lambda host, port: ["93.184.215.14", address])
    error = refuse(listening.url("/x.jpg"), settings)
    assert (error.code, error.error_class) == ("address_not_public", "input")
    assert address in str(error)
    assert listening.asked == []


def test_an_address_for_a_host_is_checked_too(listening: Server) -> None:
    settings = SETTINGS.model_copy(update={"allowed_hosts": ("*",)})
    for host in ("127.0.0.1", "[::1]", "2130706433", "0x7f.1", "localhost"):
        assert refuse(f"https://{host}:{listening.port}/x.jpg", settings).code == "address_not_public"


def test_the_checked_address_is_the_one_connected_to(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([["127.0.0.1"], ["203.0.113.1"]])  # a resolver that says something else the second time
    monkeypatch.setattr(downloads, "find_addresses", lambda host, port: next(answers))
    assert download(server.says("/x.jpg", 200, b"photo"), SETTINGS) == b"photo"
    assert next(answers) == ["203.0.113.1"]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("::ffff:8.8.8.8", True), ("64:ff9b::808:808", True),
        ("127.0.0.1", False), ("10.1.2.3", False), ("172.16.0.1", False), ("192.168.0.1", False), ("100.64.0.1", False),
        ("169.254.169.254", False), ("0.0.0.0", False), ("224.0.0.1", False), ("255.255.255.255", False),
        ("::1", False), ("::", False), ("fe80::1", False), ("fc00::1", False), ("ff02::1", False),
        ("::ffff:127.0.0.1", False), ("::ffff:169.254.169.254", False), ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)  # fmt: skip
def test_public_addresses_are_told_from_others(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


def test_hosts_are_allowed_by_name_by_wildcard_or_all() -> None:
    allowed = ("shop.example.com", "*.cdn.example.com")
    assert is_allowed("shop.example.com", allowed)
    assert is_allowed("SHOP.example.com.", allowed)
    assert is_allowed("eu.cdn.example.com", allowed)
    assert not is_allowed("cdn.example.com", allowed)
    assert not is_allowed("evilcdn.example.com", allowed)
    assert not is_allowed("shop.example.com.evil.net", allowed)
    assert is_allowed("anything.net", ("*",))
    assert not is_allowed("shop.example.com", ())


def test_a_host_that_is_not_allowed_is_never_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(host: str, port: int) -> list[str]:
        raise AssertionError("looked up")

    monkeypatch.setattr(downloads, "find_addresses", look_up)
    error = refuse("https://other.example.net/x.jpg")
    assert (error.code, error.error_class) == ("host_not_allowed", "input")
    assert "KONTEXT_ALLOWED_HOSTS" in str(error)


@pytest.mark.parametrize(
    "url",
    ["https://", "https:///x", "https://user:pw@photos.example.com/", f"https://{HOST}:x/", f"https://{'a' * 64}.net/"],
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    assert refuse(url).code == "image_url_invalid"


@pytest.mark.parametrize(
    ("number", "code", "error_class"),
    [(socket.EAI_NONAME, "host_unknown", "input"), (socket.EAI_AGAIN, "source_unavailable", "transient")],
)
def test_a_name_without_address_is_said(
    monkeypatch: pytest.MonkeyPatch, number: int, code: str, error_class: str
) -> None:
    def look_up(host: str, port: int) -> list[str]:
        raise socket.gaierror(number, "no")

    monkeypatch.setattr(downloads, "find_addresses", look_up)
    error = refuse(f"https://{HOST}/x.jpg")
    assert (error.code, error.error_class) == (code, error_class)
