"""Who waits for a batch: long-pollers with a key each, and one live page. Run as `python -m bench.crowd URL BATCH`.

Reads a key a line from its standard input; the first is the page's. Each poller asks again as soon as it is answered.
The page follows its events and fetches its two changing parts after each, as a browser does. Says "here" once all are
connected, and at SIGTERM a line of JSON: what was answered, and what was no answer.
"""

import asyncio
import json
import signal
import sys
from collections import Counter
from urllib.parse import urlsplit

WAIT_S = 30
GOOD = frozenset({200, 304})
PARTS = ("?part=live", "?part=jobs")


class Caller:
    """One connection that asks one thing after the other."""

    def __init__(self, url: str, key: str) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._key = parts.hostname, parts.port, key
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def begin(self, path: str, **headers: str) -> tuple[int, dict[str, str], asyncio.StreamReader]:
        """Ask; gives status, headers and where the body is to be read."""
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        told = {"host": "bench", "authorization": f"Bearer {self._key}", **headers}
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in told.items()), "", ""]
        self._writer.write("\r\n".join(lines).encode())
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        found = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        return int(head[0].split()[1]), found, self._reader

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        """Ask and read the whole answer; gives status and ETag."""
        status, found, reader = await self.begin(path, **headers)
        if "content-length" in found:
            await reader.readexactly(int(found["content-length"]))
        return status, found.get("etag", "")


async def poll(caller: Caller, batch: str, tally: Counter[str]) -> None:
    """Wait for the batch by long polls, for ever."""
    etag = ""
    while True:
        path = f"/v1/batches/{batch}?wait={WAIT_S}" if etag else f"/v1/batches/{batch}"
        status, etag = await caller.get(path, **({"if-none-match": etag} if etag else {}))
        tally["polls" if status in GOOD else f"status {status}"] += 1


async def watch(url: str, key: str, batch: str, tally: Counter[str]) -> None:
    """Be a page that is open."""
    page, events = Caller(url, key), Caller(url, key)
    status, _, reader = await events.begin(f"/live?batch={batch}", accept="text/event-stream")
    if status != 200:
        tally[f"status {status}"] += 1
    while line := await reader.readline():
        if not line.startswith(b"event: changed"):
            continue
        tally["events"] += 1
        for part in PARTS:
            status, _ = await page.get(f"/batches/{batch}{part}", accept="text/html")
            tally["parts" if status == 200 else f"status {status}"] += 1
    tally["the page's events ended"] += 1


async def main(url: str, batch: str, keys: list[str]) -> None:
    """Be there until SIGTERM."""
    tally: Counter[str] = Counter()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    callers = [Caller(url, key) for key in keys[1:]]
    for caller in callers:
        await caller.get(f"/v1/batches/{batch}")
    waiting = [asyncio.ensure_future(poll(caller, batch, tally)) for caller in callers]
    waiting.append(asyncio.ensure_future(watch(url, keys[0], batch, tally)))
    print("here", flush=True)
    await stop.wait()
    for each in waiting:
        if each.done() and (error := each.exception()) is not None:
            tally[f"{type(error).__name__}: {error}"[:80]] += 1
        each.cancel()
    print(json.dumps(tally), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.stdin.read().split()))
