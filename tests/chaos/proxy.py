"""A TCP proxy that breaks what lies between a client and its server, in every way that networks do.

Owns the faults; refuses to know what is said, but for HTTP's 503 and for words that make a connection go silent. Runs
in a thread of its own, so that tests change its mind while processes talk through it.
"""

import asyncio
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

HOST = "127.0.0.1"
PATIENCE_S = 60.0
CHUNK_BYTES = 1 << 16
LOOK_S = 0.02
BUSY_BODY = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
BUSY = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    + f"Content-Length: {len(BUSY_BODY)}\r\n\r\n".encode()
    + BUSY_BODY
)


class Mode(StrEnum):
    """What becomes of bytes and of new connections."""

    PASS = "pass"
    REFUSE = "refuse"  # nobody listens, and what was open is reset
    HALF_OPEN = "half_open"  # accepted, then never a byte; connections stay so when the mode changes
    STALL = "stall"  # nothing flows until the mode changes, then all of it
    SLOW = "slow"  # each chunk waits `delay_s`
    STORM = "storm"  # each HTTP request is answered 503


class _Link:
    """One connection through the proxy."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.client = client
        self.server: asyncio.StreamWriter | None = None
        self.silent = False
        self.ended = asyncio.Event()

    def abort(self) -> None:
        for writer in (self.client, self.server):
            if writer is not None:
                writer.transport.abort()


class Proxy:
    """Listens on a free port of this machine, between `with` and its end.

    `upstream` is (host, port), or the path of a unix socket.

    A connection on which the client says one of `silencing` becomes half-open there and then.
    """

    def __init__(self, upstream: tuple[str, int] | str) -> None:
        self._upstream = upstream
        self._mode = Mode.PASS
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self.delay_s = 0.05
        self.silencing: tuple[bytes, ...] = ()
        self.port = self.accepted = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    @property
    def mode(self) -> Mode:
        return self._mode

    def turn(self, mode: Mode) -> None:
        """Change the mode, for connections that are open and for those to come."""
        self._run(self._turn(mode))

    def during(self, mode: Mode, seconds: float) -> None:
        """Be in a mode for a while, then pass again."""
        self.turn(mode)
        time.sleep(seconds)
        self.turn(Mode.PASS)

    def reset(self) -> int:
        """Reset every open connection; gives their number. New ones are as the mode says."""
        return self._run(self._reset())

    def silence(self) -> int:
        """Make every open connection half-open; gives their number. New ones are as the mode says."""
        for link in (links := list(self._links)):
            link.silent = True
        return len(links)

    def addresses(self) -> set[str]:
        """What the server calls its open connections, as host:port. Of a TCP server alone."""
        servers = [link.server for link in list(self._links) if link.server is not None]
        return {"{}:{}".format(*server.get_extra_info("sockname")) for server in servers}

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _turn(self, mode: Mode) -> None:
        before, self._mode = self._mode, mode
        if mode == Mode.REFUSE and self._server is not None:
            self._server.close()
            self._server = None
            await self._reset()
        elif before == Mode.REFUSE and mode != Mode.REFUSE:
            await self._listen()

    async def _reset(self) -> int:
        count = len(self._links)
        for link in list(self._links):
            link.abort()
        return count

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._reset()
        while self._links:  # every pump ends as its connection does
            for link in list(self._links):
                link.ended.set()
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer)
        self._links.add(link)
        self.accepted += 1
        try:
            with suppress(OSError):
                await self._join(link, reader)
        finally:
            self._links.discard(link)
            link.abort()

    async def _join(self, link: _Link, reader: asyncio.StreamReader) -> None:
        if self._mode == Mode.HALF_OPEN:
            link.silent = True
        if link.silent or self._mode == Mode.STORM:
            await self._pump(link, reader, None)
            return
        if isinstance(self._upstream, str):
            from_server, link.server = await asyncio.open_unix_connection(self._upstream)
        else:
            from_server, link.server = await asyncio.open_connection(*self._upstream)
        pumps = [
            asyncio.ensure_future(self._pump(link, reader, link.server)),
            asyncio.ensure_future(self._pump(link, from_server, link.client, listens=False)),
            asyncio.ensure_future(link.ended.wait()),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter | None, *, listens: bool = True
    ) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if self._mode == Mode.HALF_OPEN or (listens and any(word in data for word in self.silencing)):
                link.silent = True
            if self._mode == Mode.SLOW:
                await asyncio.sleep(self.delay_s)
            if self._mode == Mode.STORM and listens:
                await self._refuse_request(link, reader)
                return
            while self._mode == Mode.STALL and not link.silent:
                await asyncio.sleep(LOOK_S)
            if link.silent or writer is None:
                continue
            writer.write(data)
            await writer.drain()
        if link.silent and not listens:  # the server has hung up; a half-open connection does not tell
            await link.ended.wait()

    async def _refuse_request(self, link: _Link, reader: asyncio.StreamReader) -> None:
        """Take in what the client still sends, then answer 503."""
        with suppress(TimeoutError):
            while await asyncio.wait_for(reader.read(CHUNK_BYTES), LOOK_S):
                pass
        link.client.write(BUSY)
        await link.client.drain()
        link.client.close()
        with suppress(OSError):
            await link.client.wait_closed()
