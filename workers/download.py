"""Images over https, from allowed hosts only.

Owns the checks that keep a catalogue from reaching into the network the worker stands in: the host is on the list,
every address it resolves to is public, and the connection goes to the very address that was checked, on each redirect
anew.
Refuses http, other schemes, credentials in the URL, endless and endlessly slow answers.
"""

import hashlib
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPSConnection
from urllib3.exceptions import HTTPError, SSLError

from orchestrator.redaction import redact
from orchestrator.settings import Settings
from orchestrator.storage import Content, strong_etag
from workers.source_error import SourceError, show

MAX_REDIRECTS = 3
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 15.0
TOTAL_TIMEOUT_S = 120.0
CHUNK_BYTES = 1 << 16
HEADERS = {"User-Agent": "kontext-batch", "Accept": "image/*", "Accept-Encoding": "identity"}
_MISSING: Mapping[int, str] = {
    404: "image_missing",
    410: "image_missing",
    401: "image_forbidden",
    403: "image_forbidden",
}
_TRANSIENT = frozenset({408, 425, 429})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NOT_MODIFIED = 304
ASK_AGAIN = ""
"""A redirect to the same address, this time without a condition."""
_HOST = re.compile(r"[0-9a-z._:-]{1,253}")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# The only part of IPv6 that is handed out; all beside it is local, reserved, or wraps something else.
_UNICAST = ipaddress.IPv6Network("2000::/3")
# Counted as public by Python 3.11, and not: what clouds serve their machines under, documentation.
_INSIDE = tuple(map(ipaddress.ip_network, ("168.63.129.16/32", "192.0.0.0/24", "3fff::/20")))


def download(url: str, settings: Settings, validator: str | None = None) -> Content | None:
    """The bytes behind an https URL, at most `settings.max_image_bytes`, after at most 3 redirects.

    `validator` is what an earlier answer came with; None where it still holds: the server sent no bytes. An answer has
    one only where it carries a strong ETag, and it holds for the address that the redirects end at.
    Raises SourceError: `unsupported_scheme`, `image_url_invalid`, `host_not_allowed`, `address_not_public`,
    `host_unknown`, `image_missing`, `image_forbidden`, `image_too_large`, `tls_failed`, `too_many_redirects`,
    `http_status` (all input), `source_unavailable` (transient).
    """
    deadline_s = time.monotonic() + TOTAL_TIMEOUT_S
    target = url
    for _ in range(MAX_REDIRECTS + 1):
        parts = _check(url, target, settings)
        answer = _Request(url, parts, deadline_s, settings.max_image_bytes, _etag_for(target, validator)).send()
        if isinstance(answer, Content):
            etag = strong_etag(answer.validator)
            return Content(answer.data, etag and _place(target) + etag)
        if answer is None:
            return None
        target, validator = urljoin(target, answer), validator if answer else None
    raise _refuse("too_many_redirects", url, f"redirected more than {MAX_REDIRECTS} times")


def _place(target: str) -> str:
    """What ties an ETag to its address: another address may use the same one for another picture."""
    return hashlib.sha256(target.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _etag_for(target: str, validator: str | None) -> str | None:
    place = _place(target)
    return strong_etag(validator[len(place) :]) if validator and validator.startswith(place) else None


def _check(url: str, target: str, settings: Settings) -> SplitResult:
    """Parse a URL and see that it may be asked; gives it with the host as it is looked up."""
    try:
        parts = urlsplit(target)
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
    except ValueError as error:  # UnicodeError included
        raise _refuse("image_url_invalid", url, f"{error}") from None
    if parts.scheme != "https":
        raise _refuse("unsupported_scheme", url, f"leads to {parts.scheme}://; only https:// is fetched")
    if not _HOST.fullmatch(host) or parts.username is not None:
        raise _refuse("image_url_invalid", url, "expected https://host/path without user and password")
    if not is_allowed(host, settings.allowed_hosts):
        hint = "add it to KONTEXT_ALLOWED_HOSTS (*.example.com for all below, * for every public host)"
        raise _refuse("host_not_allowed", url, f"the host {host} is not allowed; {hint}")
    name = f"[{host}]" if ":" in host else host
    return parts._replace(netloc=name if port in {None, 443} else f"{name}:{port}")


def is_allowed(host: str, allowed: tuple[str, ...]) -> bool:
    """Whether a host is on the list: by its name, below `*.name`, or by `*`."""
    host = host.lower().rstrip(".")
    return any(
        pattern in {"*", host} or (pattern.startswith("*.") and host.endswith(pattern[1:])) for pattern in allowed
    )


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet, also where it wraps another one."""
    if isinstance(address, ipaddress.IPv6Address):
        wrapped = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            wrapped = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if wrapped is not None:
            return is_public(wrapped)
        if address not in _UNICAST:
            return False
    return address.is_global and not address.is_multicast and not any(address in network for network in _INSIDE)


def find_addresses(host: str, port: int) -> list[str]:
    """The addresses of a host, in the resolver's order. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _find_public_address(url: str, host: str, port: int) -> str:
    try:
        addresses = find_addresses(host, port)
    except socket.gaierror as error:
        if error.errno in {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}:
            raise _refuse("host_unknown", url, f"the host {host} has no address") from error
        raise _unavailable(url, error) from error
    except (OSError, UnicodeError) as error:
        raise _unavailable(url, error) from error
    for address in addresses:
        if not is_public(ipaddress.ip_address(address.partition("%")[0])):
            raise _refuse("address_not_public", url, f"the host {host} has the address {address}, which is not public")
    return addresses[0]


class _Socket(ssl.SSLSocket):
    """Waits for no byte beyond its deadline, however slowly the other side drips."""

    deadline_s = 0.0

    def recv_into(self, *arguments: Any, **named: Any) -> int:
        left_s = self.deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the deadline has passed")
        self.settimeout(min(READ_TIMEOUT_S, left_s))
        return super().recv_into(*arguments, **named)


class _Connection(HTTPSConnection):
    def __init__(self, *arguments: Any, deadline_s: float, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._deadline_s = deadline_s

    def connect(self) -> None:
        super().connect()
        if isinstance(self.sock, _Socket):
            self.sock.deadline_s = self._deadline_s


class _Pool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Connection


class _Request:
    """One question to one address, whose certificate has to bear the host's name."""

    def __init__(self, url: str, parts: SplitResult, deadline_s: float, max_bytes: int, etag: str | None) -> None:
        self._url, self._parts, self._deadline_s = url, parts, deadline_s
        self._max_bytes, self._etag = max_bytes, etag

    def send(self) -> Content | str | None:
        """The body with its ETag, where to ask next, or None where nothing has changed."""
        host, port = self._parts.hostname or "", self._parts.port or 443
        pool = _Pool(
            _find_public_address(self._url, host, port),
            port,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
            retries=False,
            ssl_context=_trust(),
            # The address is connected to; the name is what the certificate must say.
            server_hostname=host,
            assert_hostname=host,
            deadline_s=self._deadline_s,
        )
        path = f"{self._parts.path or '/'}{f'?{self._parts.query}' if self._parts.query else ''}"
        headers = {**HEADERS, "Host": self._parts.netloc} | ({"If-None-Match": self._etag} if self._etag else {})
        try:
            with pool:
                response = pool.urlopen("GET", path, headers=headers, redirect=False, preload_content=False)
                try:
                    return self._read_answer(response)
                finally:
                    response.close()
        except SSLError as error:
            raise _refuse(
                "tls_failed", self._url, f"the certificate or TLS of {host} is not accepted: {error}"
            ) from error
        except (HTTPError, OSError) as error:
            late = time.monotonic() >= self._deadline_s
            raise _unavailable(self._url, f"not finished within {TOTAL_TIMEOUT_S:.0f} s" if late else error) from error

    def _read_answer(self, response: urllib3.BaseHTTPResponse) -> Content | str | None:
        status, location, etag = response.status, response.headers.get("Location"), response.headers.get("ETag")
        if status in _REDIRECTS and location:
            return str(location)
        # A server whose tag has become a weak one says "not modified" too, and promises less than we were promised.
        if status == _NOT_MODIFIED and self._etag:
            return None if etag in {None, self._etag} else ASK_AGAIN
        if status in _TRANSIENT or status >= 500:
            raise _unavailable(self._url, f"status {status}")
        if status != 200:
            code = _MISSING.get(status, "http_status")
            raise _refuse(code, self._url, f"the server answered with status {status}")
        return Content(self._read_body(response), etag)

    def _read_body(self, response: urllib3.BaseHTTPResponse) -> bytes:
        length, body = response.headers.get("Content-Length", ""), bytearray()
        if length.isdecimal() and int(length[:20]) > self._max_bytes:
            raise self._too_large()
        for chunk in response.stream(CHUNK_BYTES, decode_content=True):
            body += chunk
            if len(body) > self._max_bytes:
                raise self._too_large()
        return bytes(body)

    def _too_large(self) -> SourceError:
        limit = f"larger than the {self._max_bytes:,} bytes allowed (KONTEXT_MAX_IMAGE_BYTES)"
        return _refuse("image_too_large", self._url, limit)


@cache
def _trust() -> ssl.SSLContext:
    return _watch(ssl.create_default_context())


def _watch(context: ssl.SSLContext) -> ssl.SSLContext:
    """A context whose sockets know a deadline."""
    context.sslsocket_class = _Socket
    return context


def _refuse(code: str, url: str, reason: str) -> SourceError:
    return SourceError(code, "input", f"{show(url)}: {reason}")


def _unavailable(url: str, reason: object) -> SourceError:
    return SourceError("source_unavailable", "transient", f"{show(url)}: {redact(str(reason))}")
