"""The way out: requests over https to the public internet, for source images and webhooks alike.

Owns the checks that keep a URL from reaching into the network we stand in: the host is on a list, every address it
resolves to is public, and the connection goes to the very address that was checked, whose certificate bears the host's
name. Refuses http, credentials in the URL, redirects (they are the caller's, and checked anew), and to wait for any
byte beyond a deadline, however slowly the other side drips.
"""

import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import SplitResult, urlsplit

import urllib3
from urllib3.connection import HTTPSConnection
from urllib3.exceptions import HTTPError, SSLError

from orchestrator.redaction import redact

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 15.0
_LATE = "not finished within the time it was given"
_HOST = re.compile(r"[0-9a-z._:-]{1,253}")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# The only part of IPv6 that is handed out; all beside it is local, reserved, or wraps something else.
_UNICAST = ipaddress.IPv6Network("2000::/3")
# Counted as public by Python 3.11, and not: what clouds serve their machines under, documentation.
_INSIDE = tuple(map(ipaddress.ip_network, ("168.63.129.16/32", "192.0.0.0/24", "3fff::/20")))


class OutwardError(Exception):
    """A request was not made, or did not end. `code` is a stable word; `transient`: trying again may help.

    `url_invalid`, `unsupported_scheme`, `host_not_allowed`, `host_unknown`, `address_not_public`, `tls_failed`, and
    `unavailable`, which alone is transient. The message names no URL.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message, self.transient = code, message, code == "unavailable"


def read_url(url: str) -> SplitResult:
    """Parse a URL that may be asked; gives it with the host as it is looked up. Raises OutwardError."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
    except ValueError as error:  # UnicodeError included
        raise OutwardError("url_invalid", f"{error}") from None
    if parts.scheme != "https":
        raise OutwardError("unsupported_scheme", f"leads to {parts.scheme}://; only https:// is asked")
    if not _HOST.fullmatch(host) or parts.username is not None:
        raise OutwardError("url_invalid", "expected https://host/path without user and password")
    name = f"[{host}]" if ":" in host else host
    return parts._replace(netloc=name if port in {None, 443} else f"{name}:{port}")


def check_host(host: str, allowed: tuple[str, ...], variable: str) -> None:
    """Raise OutwardError unless a host is on the list of a setting, which the message names."""
    if not is_allowed(host, allowed):
        hint = f"add it to {variable} (*.example.com for all below, * for every public host)"
        raise OutwardError("host_not_allowed", f"the host {host} is not allowed; {hint}")


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


def find_public_address(host: str, port: int) -> str:
    """The address to connect to, all of the host's being public. Raises OutwardError."""
    try:
        addresses = find_addresses(host, port)
    except socket.gaierror as error:
        if error.errno in {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}:
            raise OutwardError("host_unknown", f"the host {host} has no address") from error
        raise _unavailable(error) from error
    except (OSError, UnicodeError) as error:
        raise _unavailable(error) from error
    for address in addresses:
        if not is_public(ipaddress.ip_address(address.partition("%")[0])):
            raise OutwardError("address_not_public", f"the host {host} has the address {address}, which is not public")
    return addresses[0]


@contextmanager
def ask(
    method: str, parts: SplitResult, headers: Mapping[str, str], timeout_s: float, body: bytes | None = None
) -> Iterator[urllib3.BaseHTTPResponse]:
    """Ask one public address, within `timeout_s` seconds in all; the answer's body is read within the block.

    Raises OutwardError, also for what fails within the block.
    """
    if timeout_s <= 0:
        raise _unavailable(_LATE)
    deadline_s = time.monotonic() + timeout_s
    host, port = parts.hostname or "", parts.port or 443
    pool = _Pool(
        find_public_address(host, port),
        port,
        timeout=urllib3.Timeout(connect=min(CONNECT_TIMEOUT_S, timeout_s), read=min(READ_TIMEOUT_S, timeout_s)),
        retries=False,
        ssl_context=trust(),
        # The address is connected to; the name is what the certificate must say.
        server_hostname=host,
        assert_hostname=host,
        deadline_s=deadline_s,
    )
    path = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
    asked = {**headers, "Host": parts.netloc}
    try:
        with pool:
            response = pool.urlopen(method, path, body=body, headers=asked, redirect=False, preload_content=False)
            try:
                yield response
            finally:
                response.close()
    except SSLError as error:
        message = f"the certificate or TLS of {host} is not accepted: {error}"
        raise OutwardError("tls_failed", message) from error
    except (HTTPError, OSError) as error:
        late = time.monotonic() >= deadline_s
        raise _unavailable(_LATE if late else error) from error


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


@cache
def trust() -> ssl.SSLContext:
    """The certificates that are accepted: the system's."""
    return watch(ssl.create_default_context())


def watch(context: ssl.SSLContext) -> ssl.SSLContext:
    """A context whose sockets know a deadline."""
    context.sslsocket_class = _Socket
    return context


def _unavailable(reason: object) -> OutwardError:
    return OutwardError("unavailable", redact(str(reason)))
