"""Images over https, from allowed hosts only.

Owns what an answer means, redirects, each of which is checked anew, and whether an image has changed. Whom a request
may reach at all is `orchestrator.storage.outward`'s. Refuses endless answers.
"""

import hashlib
import time
from collections.abc import Mapping
from urllib.parse import SplitResult, urljoin

import urllib3

from orchestrator.settings import Settings
from orchestrator.storage import Content, strong_etag
from orchestrator.storage.outward import OutwardError, ask, check_host, read_url
from workers.source_error import SourceError, show

MAX_REDIRECTS = 3
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
_CODES: Mapping[str, str] = {"url_invalid": "image_url_invalid", "unavailable": "source_unavailable"}


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
        try:
            parts = read_url(target)
            check_host(parts.hostname or "", settings.allowed_hosts, "KONTEXT_ALLOWED_HOSTS")
            request = _Request(url, parts, deadline_s, settings.max_image_bytes, _etag_for(target, validator))
            answer = request.send()
        except OutwardError as error:
            code, message = _CODES.get(error.code, error.code), f"{show(url)}: {error.message}"
            raise SourceError(code, "transient" if error.transient else "input", message) from error
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


class _Request:
    """One question to one address."""

    def __init__(self, url: str, parts: SplitResult, deadline_s: float, max_bytes: int, etag: str | None) -> None:
        self._url, self._parts, self._deadline_s = url, parts, deadline_s
        self._max_bytes, self._etag = max_bytes, etag

    def send(self) -> Content | str | None:
        """The body with its ETag, where to ask next, or None where nothing has changed."""
        headers = HEADERS | ({"If-None-Match": self._etag} if self._etag else {})
        with ask("GET", self._parts, headers, self._deadline_s - time.monotonic()) as response:
            return self._read_answer(response)

    def _read_answer(self, response: urllib3.BaseHTTPResponse) -> Content | str | None:
        status, location, etag = response.status, response.headers.get("Location"), response.headers.get("ETag")
        if status in _REDIRECTS and location:
            return str(location)
        # A server whose tag has become a weak one says "not modified" too, and promises less than we were promised.
        if status == _NOT_MODIFIED and self._etag:
            return None if etag in {None, self._etag} else ASK_AGAIN
        if status in _TRANSIENT or status >= 500:
            raise SourceError("source_unavailable", "transient", f"{show(self._url)}: status {status}")
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


def _refuse(code: str, url: str, reason: str) -> SourceError:
    return SourceError(code, "input", f"{show(url)}: {reason}")
