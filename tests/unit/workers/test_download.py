"""Images over https: from a real TLS server on this machine."""

import gzip
import ipaddress
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from unittest.mock import ANY

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.settings import Settings
from orchestrator.storage import Content, outward
from orchestrator.storage.outward import is_allowed, is_public
from tests.outside import HOST, Answer, Outside, lead_outside, listen
from tests.waiting import PATIENCE_S
from workers import download as downloads
from workers.download import download
from workers.source import SourceError, fetch

SETTINGS = Settings(allowed_hosts=(HOST, "*.cdn.example.com"), max_image_bytes=100_000)


@pytest.fixture(scope="module")
def listening() -> Iterator[Outside]:
    with listen() as outside:
        yield outside


@pytest.fixture
def server(listening: Outside, monkeypatch: pytest.MonkeyPatch) -> Outside:
    """The server, reached by any name."""
    listening.clear()
    lead_outside(monkeypatch)
    return listening


def read(url: str, settings: Settings = SETTINGS) -> bytes:
    content = download(url, settings)
    assert content is not None
    return content.data


def refuse(url: str, settings: Settings = SETTINGS) -> SourceError:
    with pytest.raises(SourceError) as caught:
        download(url, settings)
    assert url[:100] in str(caught.value)
    return caught.value


def refuse_at(url: str) -> SourceError:
    with pytest.raises(SourceError) as caught:
        download(url, SETTINGS)
    return caught.value


def test_an_image_is_fetched_whole(server: Outside) -> None:
    url = server.says("/a%20b.jpg?size=l", 200, b"photo" * 1000)
    assert fetch(url, "/folder", SETTINGS) == Content(b"photo" * 1000, None)
    assert server.asked == [(f"{HOST}:{server.port}", "/a%20b.jpg?size=l")]


def test_a_redirect_is_followed_to_an_allowed_host_only(server: Outside) -> None:
    server.says("/end.jpg", 200, b"photo")
    server.says("/cdn", 302, Location=server.url("/end.jpg", "eu.cdn.example.com"))
    assert read(server.says("/start", 301, Location="/cdn")) == b"photo"
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
def test_a_status_is_put_in_our_words(server: Outside, status: int, code: str, error_class: str) -> None:
    error = refuse(server.says("/x.jpg", status))
    assert (error.code, error.error_class) == (code, error_class)
    assert f"status {status}" in str(error)


def test_too_many_bytes_are_refused_whatever_the_header_says(server: Outside) -> None:
    assert len(read(server.says("/ok", 200, b"x" * 100_000))) == 100_000
    assert refuse(server.says("/large", 200, b"x" * 100_001)).code == "image_too_large"

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b"x" * 65536)

    server.answers["/endless"] = endless
    assert refuse(server.url("/endless")).code == "image_too_large"


def test_a_length_beyond_the_limit_is_refused_before_a_byte_is_read(
    server: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = threading.Event()

    def promise(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100001")
        handler.end_headers()
        waits.wait(PATIENCE_S)

    monkeypatch.setattr(outward, "READ_TIMEOUT_S", PATIENCE_S)
    server.answers["/promise"] = promise
    start_s = time.monotonic()
    assert refuse(server.url("/promise")).code == "image_too_large"
    assert time.monotonic() - start_s < PATIENCE_S / 2
    waits.set()


def test_a_compressed_bomb_stops_at_the_limit(server: Outside) -> None:
    bomb = gzip.compress(b"x" * (64 << 20))
    url = server.says("/bomb", 200, bomb, **{"Content-Encoding": "gzip"})
    assert len(bomb) < SETTINGS.max_image_bytes
    tracemalloc.start()
    error = refuse(url)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.code == "image_too_large"
    assert peak_bytes < 8 << 20


def conditional(etag: str, body: bytes) -> Answer:
    """A server that keeps to RFC 9110: no body where the tag is still the one it was asked for."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        same = handler.headers["If-None-Match"] in {etag, etag.removeprefix("W/")}
        handler.send_response(304 if same else 200)
        handler.send_header("ETag", etag)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if not same:
            handler.wfile.write(body)

    return answer


def test_an_image_that_did_not_change_is_not_sent_again(server: Outside) -> None:
    server.answers["/x.jpg"] = conditional('"one"', b"photo")
    first = download(server.url("/x.jpg"), SETTINGS)
    assert first is not None and first.validator
    assert download(server.url("/x.jpg"), SETTINGS, first.validator) is None
    server.answers["/x.jpg"] = conditional('"two"', b"other")
    assert download(server.url("/x.jpg"), SETTINGS, first.validator) == Content(b"other", ANY)


@pytest.mark.parametrize("etag", ["", '""', 'W/"one"', "one", '"o\tne"', f'"{"x" * 300}"'])
def test_a_weak_or_odd_etag_is_not_trusted(server: Outside, etag: str) -> None:
    url = server.says("/x.jpg", 200, b"photo", **({"ETag": etag} if etag else {}))
    assert download(url, SETTINGS) == Content(b"photo", None)


def test_a_tag_that_became_weak_is_asked_again_without_it(server: Outside) -> None:
    server.answers["/x.jpg"] = conditional('"one"', b"photo")
    first = download(server.url("/x.jpg"), SETTINGS)
    assert first is not None
    server.answers["/x.jpg"] = conditional('W/"one"', b"newer")
    assert download(server.url("/x.jpg"), SETTINGS, first.validator) == Content(b"newer", None)


def test_a_tag_holds_for_the_address_it_came_from(server: Outside) -> None:
    for path in ("/a.jpg", "/b.jpg"):
        server.answers[path] = conditional('"1"', path.encode())
    url = server.says("/photo", 302, Location="/a.jpg")
    first = download(url, SETTINGS)
    assert first is not None and first.data == b"/a.jpg"
    assert download(url, SETTINGS, first.validator) is None
    server.says("/photo", 302, Location="/b.jpg")
    second = download(url, SETTINGS, first.validator)
    assert second is not None and second.data == b"/b.jpg"


def test_no_message_tells_a_secret(server: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "S3cretS1gnature"
    for path, status in (("/403", 403), ("/500", 500)):
        query = f"{path}?X-Amz-Signature={secret}&token={secret}"
        assert secret not in str(refuse_at(server.says(query, status)))
    assert secret not in str(refuse_at(f"https://{HOST}:9/x.jpg?sig={secret}"))
    assert secret not in str(refuse_at(f"https://anna:{secret}@{HOST}/x.jpg"))
    away = server.says("/away", 302, Location=f"https://evil.example.net/x.jpg?sig={secret}")
    assert secret not in str(refuse_at(away))
    monkeypatch.setattr(outward, "READ_TIMEOUT_S", 0.1)
    server.answers[f"/s?sig={secret}"] = lambda handler: time.sleep(0.3)
    assert secret not in str(refuse_at(server.url(f"/s?sig={secret}")))


def test_a_cut_answer_is_transient(server: Outside) -> None:
    error = refuse(server.says("/cut", 200, b"half", **{"Content-Length": "1000"}))
    assert (error.code, error.error_class) == ("source_unavailable", "transient")


@pytest.mark.parametrize("part", ["body", "header", "chunk size", "nothing"])
def test_a_dripping_answer_ends_at_the_deadline(server: Outside, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """A byte now and then keeps every single wait short; what is bounded is their sum."""
    start = {
        "body": b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n",
        "header": b"HTTP/1.1 200 OK\r\nX-Slow: ",
        "chunk size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "nothing": b"",
    }[part]

    over = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(start)
        until_s = time.monotonic() + PATIENCE_S
        while not over.wait(0.05) and time.monotonic() < until_s:
            handler.wfile.write(b"0" if start else b"")

    server.answers["/drip"] = drip
    monkeypatch.setattr(downloads, "TOTAL_TIMEOUT_S", 0.3)
    start_s = time.monotonic()
    error = refuse(server.url("/drip"))
    over.set()
    assert time.monotonic() - start_s < PATIENCE_S / 2
    assert (error.code, error.error_class) == ("source_unavailable", "transient")
    assert "not finished within" in str(error)


def test_the_deadline_is_one_for_all_redirects(server: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.2)
        handler.send_response(302)
        handler.send_header("Location", "/step")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.answers["/step"] = step
    monkeypatch.setattr(downloads, "TOTAL_TIMEOUT_S", 0.3)
    assert "not finished within" in str(refuse(server.url("/step")))


def test_a_silent_server_is_transient(server: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outward, "READ_TIMEOUT_S", 0.1)
    server.answers["/silent"] = lambda handler: time.sleep(0.5)
    assert refuse(server.url("/silent")).error_class == "transient"


def test_a_server_that_is_gone_is_transient(server: Outside) -> None:
    assert refuse(f"https://{HOST}:9/x.jpg").code == "source_unavailable"


def test_a_certificate_of_another_name_is_refused(server: Outside) -> None:
    settings = SETTINGS.model_copy(update={"allowed_hosts": ("*",)})
    server.says("/x.jpg", 200, b"photo")
    error = refuse(server.url("/x.jpg", "other.example.org"), settings)
    assert (error.code, error.error_class) == ("tls_failed", "input")
    assert server.asked == []


def test_a_certificate_that_nobody_vouches_for_is_refused(server: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outward, "trust", ssl.create_default_context)
    server.says("/x.jpg", 200, b"photo")
    assert refuse(server.url("/x.jpg")).code == "tls_failed"


# Whom we do not ask


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "192.168.1.1", "::1", "fd00::1", "0.0.0.0"]
)
def test_a_host_that_leads_inside_is_refused(listening: Outside, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    listening.clear()
    settings = SETTINGS.model_copy(update={"allowed_hosts": ("*",)})
    # One public address among them does not help.
    monkeypatch.setattr(outward, "find_addresses", lambda host, port: ["93.184.215.14", address])
    error = refuse(listening.url("/x.jpg"), settings)
    assert (error.code, error.error_class) == ("address_not_public", "input")
    assert address in str(error)
    assert listening.asked == []


def test_an_address_for_a_host_is_checked_too(listening: Outside) -> None:
    settings = SETTINGS.model_copy(update={"allowed_hosts": ("*",)})
    for host in ("127.0.0.1", "[::1]", "2130706433", "0x7f.1", "localhost"):
        assert refuse(f"https://{host}:{listening.port}/x.jpg", settings).code == "address_not_public"


def test_the_checked_address_is_the_one_connected_to(server: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([["127.0.0.1"], ["203.0.113.1"]])  # a resolver that says something else the second time
    monkeypatch.setattr(outward, "find_addresses", lambda host, port: next(answers))
    assert read(server.says("/x.jpg", 200, b"photo")) == b"photo"
    assert next(answers) == ["203.0.113.1"]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("::ffff:8.8.8.8", True), ("64:ff9b::808:808", True),
        ("127.0.0.1", False), ("10.1.2.3", False), ("172.16.0.1", False), ("192.168.0.1", False), ("100.64.0.1", False),
        ("169.254.169.254", False), ("0.0.0.0", False), ("224.0.0.1", False), ("255.255.255.255", False),
        ("::1", False), ("::", False), ("fe80::1", False), ("fc00::1", False), ("ff02::1", False),
        ("::ffff:127.0.0.1", False), ("::ffff:169.254.169.254", False), ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False), ("2002:a00:1::", False), ("64:ff9b::a00:1", False), ("64:ff9b:1::808:808", False),
        ("::127.0.0.1", False), ("::8.8.8.8", False), ("fec0::1", False), ("2001:db8::1", False), ("3fff::1", False),
        ("2001:0:4136:e378:8000:63bf:f5ff:fffe", False), ("4000::1", False), ("100::1", False),
        ("fd00:ec2::254", False),
        ("240.0.0.1", False), ("198.18.0.1", False), ("192.0.2.1", False), ("203.0.113.1", False),
        ("100.100.100.200", False), ("192.0.0.192", False), ("168.63.129.16", False),
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

    monkeypatch.setattr(outward, "find_addresses", look_up)
    error = refuse("https://other.example.net/x.jpg")
    assert (error.code, error.error_class) == ("host_not_allowed", "input")
    assert "KONTEXT_ALLOWED_HOSTS" in str(error)


@pytest.mark.parametrize(
    "url",
    [
        "https://", "https:///x", f"https://{HOST}:x/", f"https://{'a' * 64}.net/", "https://a b/", "https://[::1%25lo]/",
        "https://[::1", f"https://{HOST}:99999/", f"https://{HOST}\x7f/",
    ],
)  # fmt: skip
def test_a_url_that_is_none_is_refused(url: str) -> None:
    assert refuse(url, SETTINGS.model_copy(update={"allowed_hosts": ("*",)})).code == "image_url_invalid"


def test_a_url_with_a_password_is_refused_and_not_told() -> None:
    for url in ("https://user:pw@photos.example.com/", "https://photos.example.com\\:pw@evil.net/"):
        error = refuse_at(url)
        assert error.code == "image_url_invalid"
        assert "pw" not in str(error)


def test_a_name_is_allowed_as_it_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks like a dot, and letters that IDNA makes plain, are made plain before the list is asked."""
    asked: list[str] = []

    def look_up(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    monkeypatch.setattr(outward, "find_addresses", look_up)
    assert refuse_at("https://ＰＨＯＴＯＳ。example．com/x.jpg").code == "address_not_public"
    assert asked == [HOST]
    assert refuse_at("https://photos.example.com。evil.net/x.jpg").code == "host_not_allowed"
    assert asked == [HOST]


@given(st.one_of(st.text(max_size=60), st.text("/:@[]%.\\#?\t\n\x00 aé。1x", max_size=60)))
def test_whatever_stands_in_a_catalogue_is_refused_in_our_words(rest: str) -> None:
    """Names lead nowhere here: whatever the text, there is no other error, and nobody but the resolver is asked."""

    def look_up(host: str, port: int) -> list[str]:
        assert is_allowed(host, ("*",)) and host == host.lower()
        raise socket.gaierror(socket.EAI_NONAME, "no")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outward, "find_addresses", look_up)
        with pytest.raises(SourceError) as caught:
            download(f"https://{rest}", SETTINGS.model_copy(update={"allowed_hosts": ("*",)}))
    assert caught.value.code in {"image_url_invalid", "host_unknown"}


HEADERS = st.sampled_from(
    [b"Location", b"Content-Length", b"Transfer-Encoding", b"Content-Encoding", b"ETag", b"Content-Type", b""]
)
VALUES = st.one_of(st.binary(max_size=40), st.sampled_from([b"chunked", b"gzip", b"-1", b"5", b"/x.jpg", b'"a"']))


@given(
    st.sampled_from([b"200 OK", b"302 Found", b"304 Not Modified", b"100 Continue", b"999", b"x", b""]),
    st.lists(st.tuples(HEADERS, VALUES), max_size=5),
    st.binary(max_size=100),
)
def test_whatever_a_server_answers_is_an_image_or_refused(
    status: bytes, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    """The bytes of an answer are the other side's to choose."""
    reply = status + b"\r\n" + b"".join(name + b": " + value + b"\r\n" for name, value in headers) + b"\r\n" + body
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(b"HTTP/1.1 " + reply)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(outward, "find_addresses", lambda host, port: ["127.0.0.1"])
            patch.setattr(outward, "is_public", lambda address: True)
            patch.setattr(outward._Connection, "connect", lambda self: vars(self).update(sock=ours, is_verified=True))
            try:
                content = download(f"https://{HOST}/x.jpg", SETTINGS)
            except SourceError:
                return
    assert content is not None and len(content.data) <= 100


@pytest.mark.parametrize(
    ("number", "code", "error_class"),
    [(socket.EAI_NONAME, "host_unknown", "input"), (socket.EAI_AGAIN, "source_unavailable", "transient")],
)
def test_a_name_without_address_is_said(
    monkeypatch: pytest.MonkeyPatch, number: int, code: str, error_class: str
) -> None:
    def look_up(host: str, port: int) -> list[str]:
        raise socket.gaierror(number, "no")

    monkeypatch.setattr(outward, "find_addresses", look_up)
    error = refuse(f"https://{HOST}/x.jpg")
    assert (error.code, error.error_class) == (code, error_class)
