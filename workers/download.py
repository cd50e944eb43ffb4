"""Images over https, from allowed hosts only.

Owns the checks that keep a catalogue from reaching into the network the worker stands in: the host is on the list,
every address it resolves to is public, and the connection goes to the very address that was checked, on each redirect
anew.
Refuses http, other schemes, credentials in the URL, endless and endlessly slow answers.
"""

import ipaddress
import socket
import ssl
import time
from collections.abc import Mapping
from functools import cache
from urllib.parse import SplitResult, urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, SSLError

from orchestrator.settings import Settings
from workers.source_error import SourceError

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
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def download(url: str, settings: Settings) -> bytes:
    """The bytes behind an https URL, at most `settings.max_image_bytes`, after at most 3 redirects.

    Raises SourceError: `unsupported_scheme`, `image_url_invalid`, `host_not_allowed`, `address_not_public`,
    `host_unknown`, `image_missing`, `image_forbidden`, `image_too_large`, `tls_failed`, `too_many_redirects`,
    `http_status` (all input), `source_unavailable` (transient).
    """
    deadline_s = time.monotonic() + TOTAL_TIMEOUT_S
    target = url
    for _ in range(MAX_REDIRECTS + 1):
        answer = _request(url, _check(url, target, settings), deadline_s, settings.max_image_bytes)
        if isinstance(answer, bytes):
            return answer
        target = urljoin(target, answer)
    raise _refuse("too_many_redirects", url, f"redirected more than {MAX_REDIRECTS} times")


def _check(url: str, target: str, settings: Settings) -> SplitResult:
    """Parse a URL and see that it may be asked."""
    try:
        parts = urlsplit(target)
        host, _ = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError as error:  # UnicodeError included
        raise _refuse("image_url_invalid", url, f"{error}") from None
    if parts.scheme != "https":
        raise _refuse("unsupported_scheme", url, f"leads to {parts.scheme}://; only https:// is fetched")
    if not host or parts.username is not None:
        raise _refuse("image_url_invalid", url, "expected https://host/path without user and password")
    if not is_allowed(host, settings.allowed_hosts):
        hint = "add it to KONTEXT_ALLOWED_HOSTS (*.example.com for all below, * for every public host)"
        raise _refuse("host_not_allowed", url, f"the host {host} is not allowed; {hint}")
    return parts


def is_allowed(host: str, allowed: tuple[str, ...]) -> bool:
    """Whether a host is on the list: by its name, below `*.name`, or by `*`."""
    host = host.lower().rstrip(".")
    return any(
        pattern in {"*", host} or (pattern.startswith("*.") and host.endswith(pattern[1:])) for pattern in allowed
    )


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet, also where it wraps another one."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None and not is_public(inner):
            return False
        if address.ipv4_mapped is not None:
            return True
    return address.is_global and not address.is_multicast


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


def _request(url: str, parts: SplitResult, deadline_s: float, max_bytes: int) -> bytes | str:
    """Ask one address: the body, or where it redirects to."""
    host, port = (parts.hostname or "").encode("idna").decode(), parts.port or 443
    pool = urllib3.HTTPSConnectionPool(
        _find_public_address(url, host, port),
        port,
        timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
        retries=False,
        ssl_context=_trust(),
        # The address is connected to; the name is what the certificate must say.
        server_hostname=host,
        assert_hostname=host,
    )
    path = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
    headers = {**HEADERS, "Host": host if port == 443 else f"{host}:{port}"}
    try:
        with pool:
            response = pool.urlopen("GET", path, headers=headers, redirect=False, preload_content=False)
            try:
                location = response.headers.get("Location")
                if response.status in _REDIRECTS and location:
                    return str(location)
                _check_status(url, response.status)
                return _read(url, response, deadline_s, max_bytes)
            finally:
                response.close()
    except SSLError as error:
        raise _refuse("tls_failed", url, f"the certificate or TLS of {host} is not accepted: {error}") from error
    except (HTTPError, OSError) as error:
        raise _unavailable(url, error) from error


def _check_status(url: str, status: int) -> None:
    if status in _TRANSIENT or status >= 500:
        raise _unavailable(url, f"status {status}")
    if status != 200:
        raise _refuse(_MISSING.get(status, "http_status"), url, f"the server answered with status {status}")


def _read(url: str, response: urllib3.BaseHTTPResponse, deadline_s: float, max_bytes: int) -> bytes:
    body = bytearray()
    for chunk in response.stream(CHUNK_BYTES, decode_content=True):
        body += chunk
        if len(body) > max_bytes:
            limit = f"larger than the {max_bytes:,} bytes allowed (KONTEXT_MAX_IMAGE_BYTES)"
            raise _refuse("image_too_large", url, limit)
        if time.monotonic() > deadline_s:
            raise _unavailable(url, f"not finished within {TOTAL_TIMEOUT_S:.0f} s")
    return bytes(body)


@cache
def _trust() -> ssl.SSLContext:
    return ssl.create_default_context()


def _refuse(code: str, url: str, reason: str) -> SourceError:
    return SourceError(code, "input", f"{url[:300]}: {reason}")


def _unavailable(url: str, reason: object) -> SourceError:
    return SourceError("source_unavailable", "transient", f"{url[:300]}: {reason}")
