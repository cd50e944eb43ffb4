"""The wire: requests with a key, tried again where that is safe, and answers read into dataclasses.

Owns which failures are worth another try, and how long. Refuses to send the key anywhere but to its server: what a
store's address takes or gives goes through a connection without it.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
from pydantic import ValidationError

from orchestrator.client import shapes
from orchestrator.client.errors import ApiError, read_problem

T = TypeVar("T")
CONNECT_S, READ_S, WRITE_S = 5.0, 60.0, 60.0
CONNECTIONS = 16
PAUSE_S, PAUSE_MOST_S = 0.25, 8.0
BUSY = frozenset({429, 503})
_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


class Transport:
    """One server and one key. Threads may share it.

    `patience_s` is how long a call that is worth it is tried again.
    """

    def __init__(self, server: str, key: str, patience_s: float, http: httpx2.Client | None = None) -> None:
        self.server, self.patience_s = read_server(server), patience_s
        outside = not is_loopback(self.server)  # what runs here is reached through no proxy
        limits = httpx2.Limits(max_connections=CONNECTIONS)
        timeout = httpx2.Timeout(READ_S, connect=CONNECT_S, write=WRITE_S)
        self._http = http or httpx2.Client(base_url=self.server, timeout=timeout, limits=limits, trust_env=outside)
        self._store = httpx2.Client(timeout=timeout, limits=limits, trust_env=outside)
        self._headers = {"authorization": f"Bearer {key}"}

    def close(self) -> None:
        """Close the connections."""
        self._http.close()
        self._store.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        again: bool | None = None,
        also_again: frozenset[int] = frozenset(),
        patience_s: float | None = None,
        allowed: frozenset[int] = frozenset(),
        headers: Mapping[str, str] | None = None,
        anew: Callable[[], Mapping[str, Any]] | None = None,
        **given: Any,
    ) -> httpx2.Response:
        """The answer to one call, read as a whole. Raises ApiError for any that is no success and not `allowed`.

        `again`: the same call may be made twice; unset, by its method. `also_again` are statuses that are then worth
        another try beside those of a busy server. `anew` gives what must be made anew for each try.
        """
        again = method in {"GET", "PUT", "DELETE", "PATCH"} if again is None else again
        where = f"{method} {path}"
        tries = _Tries(self.patience_s if patience_s is None else patience_s)
        while True:
            try:
                sent = {**self._headers, **(headers or {})}
                answer = self._http.request(method, path, headers=sent, **given, **(anew() if anew else {}))
            except httpx2.LocalProtocolError as error:
                detail = f"the body of {where} is not as long as was said ({error})"
                raise ApiError(detail, where=where, code="cut_short") from error
            except httpx2.TransportError as error:
                if not (again or isinstance(error, _NEVER_SENT)) or not tries.pause():
                    raise self.unreachable(error, where) from error
                continue
            if answer.is_success or answer.status_code in allowed:
                return answer
            # A caller with too many calls was turned away at the door: nothing was done, whatever was asked.
            worth = answer.status_code == 429 or (again and answer.status_code in BUSY | also_again)
            if not worth or not tries.pause(answer.headers.get("retry-after")):
                raise read_problem(answer, where)

    def read(self, kind: Any, method: str, path: str, **given: Any) -> Any:
        """What a call is answered with, as a `kind`. Raises ApiError, also for an answer that is no such thing."""
        return self.parse(kind, self.call(method, path, **given), f"{method} {path}")

    def parse(self, kind: Any, answer: httpx2.Response, where: str) -> Any:
        """An answer's body as a `kind`. Raises ApiError."""
        try:
            return shapes.adapter(kind).validate_json(answer.content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            detail = f"the answer of {where} cannot be read ({place}: {first['msg']}); do client and server fit?"
            raise ApiError(detail, where=where, code="bad_answer", status=None) from None

    @contextmanager
    def stream(self, path: str, **given: Any) -> Iterator[httpx2.Response]:
        """An answer that is read piece by piece, asked for once. Raises ApiError, also where it breaks off."""
        where = f"GET {path}"
        try:
            with self._http.stream("GET", path, headers=self._headers, **given) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    raise read_problem(answer, where)
                yield answer
        except httpx2.TransportError as error:
            raise self.unreachable(error, where) from error

    def store(self, method: str, url: str, **given: Any) -> httpx2.Response:
        """Ask a store at an address that the server gave; the key stays here. Raises httpx2.TransportError."""
        return self._store.request(method, url, **given)

    def unreachable(self, error: Exception, where: str) -> ApiError:
        """The error of a call that no answer came to."""
        reason = str(error) or type(error).__name__
        detail = f"{self.server} does not answer ({reason}): check the address, and that `kontext serve` runs there"
        return ApiError(detail, where=where, code="unreachable")


class _Tries:
    """How often a call was tried, and whether it may be once more."""

    def __init__(self, patience_s: float) -> None:
        self._until_s, self._count = time.monotonic() + patience_s, 0

    def pause(self, retry_after: str | None = None) -> bool:
        """Wait a little longer than before, or as long as the server says; False when patience does not reach."""
        asked_s = float(retry_after) if retry_after and retry_after.isdigit() else 0.0
        own_s = min(PAUSE_S * 2**self._count, PAUSE_MOST_S) * random.uniform(0.5, 1.0)
        wait_s, self._count = max(asked_s, own_s), self._count + 1
        if time.monotonic() + wait_s > self._until_s:
            return False
        time.sleep(wait_s)
        return True


def read_server(server: str) -> str:
    """A server's address as it is called. Raises ApiError for what is none."""
    text = server.strip()
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is no number
        good = False
    if not good or parts.username or parts.query or parts.fragment:
        shown = text.rpartition("@")[2][:200]
        detail = f"{shown!r} is no server's address: expected https://kontext.example.com, or http://localhost:8080"
        raise ApiError(detail, where=shown, code="bad_server", status=400)
    return parts.geturl().rstrip("/")


def is_loopback(server: str) -> bool:
    """Whether a server's address is this machine's own."""
    host = urlsplit(server).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
