"""Photos are decoded in processes of their own: a hostile file may exhaust or crash one of them, and nothing else.

Owns these processes, their limits of memory and CPU time, and what their deaths say of a file. They hold no secrets: of
the environment they get the paths of libraries alone. Refuses to know formats: that is `workers.photo`. It
imports little, so that a decoder starts in a tenth of a second.
Run as `python -m workers.decoder MAX_PX MEMORY_BYTES CPU_S WALL_S`: photos come by stdin, pictures go by stdout.
"""

import fcntl
import json
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from queue import LifoQueue
from typing import IO, Any

from PIL import Image

from workers.photo import open_photo
from workers.source_error import SourceError

CPU_S = 20.0
"""Of one photo; the largest that are allowed take two to eight."""
WALL_S = 180.0
"""After which a decoder that gets no CPU is given up, and its photo is tried again later."""
BASE_BYTES, BYTES_PER_PX = 256 << 20, 24
"""Memory of one photo: 24 bytes a pixel hold the decoder's own rows, RGBA, a mask, and RGB twice."""
MOST = 4
PIPE_BYTES = 1 << 20
_KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "SYSTEMROOT")
_CRASHES = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGSYS})


class Decoders:
    """Up to `count` decoders, four at most, started when needed. `open` may be called from several threads."""

    def __init__(self, max_px: int, *, cpu_s: float = CPU_S, wall_s: float = WALL_S) -> None:
        self._limits = (max_px, BASE_BYTES + BYTES_PER_PX * max_px, cpu_s, wall_s)
        self._free: LifoQueue[_Decoder | None] = LifoQueue()
        self.count = min(MOST, os.cpu_count() or 1)
        for _ in range(self.count):
            self._free.put(None)

    def open(self, data: bytes) -> Image.Image:
        """Decode a photo whole, as `workers.photo.open_photo` does, within bounds of time and memory.

        Raises SourceError: what `open_photo` refuses, `image_too_heavy` beyond the bounds (input), `decoder_died` where
        the decoder was ended from outside (transient).
        """
        decoder = self._free.get()
        try:
            decoder = decoder or _Decoder(*self._limits)
            picture = decoder.open(data)
        except _Died:
            assert decoder is not None
            raise _blame(decoder.end(), self._limits) from None
        finally:
            self._free.put(decoder if decoder and decoder.lives else None)
        return picture

    def close(self) -> None:
        """End the decoders."""
        for _ in range(self.count):
            decoder = self._free.get()
            if decoder is not None:
                decoder.end()


class _Died(Exception):
    """The decoder ended before it had answered."""


class _Decoder:
    """One process, which decodes one photo after the other."""

    def __init__(self, *limits: float) -> None:
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        self.lives = True
        self._process = subprocess.Popen(
            [sys.executable, "-m", "workers.decoder", *map(str, limits)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # libtiff and libpng say there what files make them say
            env={**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        for pipe in (self._requests, self._answers):
            _widen(pipe)

    def open(self, data: bytes) -> Image.Image:
        try:
            _send(self._requests, data)
            answer = json.loads(_receive(self._answers))
            if "code" in answer:
                raise SourceError(answer["code"], "input", answer["message"])
            return Image.frombytes("RGB", tuple(answer["size"]), _receive(self._answers))
        except (OSError, EOFError) as error:
            raise _Died from error

    def end(self) -> int:
        """Let it end, and give its exit status; negative for a signal."""
        self.lives = False
        with suppress(OSError):  # a photo that it did not take is in the buffer still
            self._requests.close()
        self._answers.close()
        try:
            return self._process.wait(WALL_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _blame(status: int, limits: tuple[float, ...]) -> SourceError:
    """What a decoder's death says of the photo it held."""
    if status == -signal.SIGPROF:
        return SourceError(
            "image_too_heavy", "input", f"decoding takes more than {limits[2]:g} s of CPU; save the image anew"
        )
    if -status in _CRASHES:
        return SourceError(
            "image_unreadable", "input", f"the image crashes its decoder ({signal.Signals(-status).name})"
        )
    return SourceError("decoder_died", "transient", f"the photo's decoder ended from outside (status {status})")


def _send(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(struct.pack("<Q", len(data)))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    """One message. Raises EOFError where the pipe ends before it does."""
    head = pipe.read(8)
    data = pipe.read(struct.unpack("<Q", head)[0]) if len(head) == 8 else b""
    if len(head) < 8 or len(data) < struct.unpack("<Q", head)[0]:
        raise EOFError
    return data


def _widen(pipe: IO[bytes]) -> None:
    """Let a pipe hold more than 64 KiB, where the system can: fewer turns for a picture."""
    with suppress(AttributeError, OSError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _serve(max_px: int, memory_bytes: int, cpu_s: float, wall_s: float, photos: IO[bytes], answers: IO[bytes]) -> None:
    """Decode photos until there are no more."""
    Image.preinit()
    _limit_memory(memory_bytes)
    while True:
        try:
            data = _receive(photos)
        except EOFError:
            return
        # Both end the process by their default action: Python code could not run while a decoder's C code loops.
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        signal.setitimer(signal.ITIMER_REAL, wall_s)
        told, pixels = _decode(data, max_px, memory_bytes)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(answers, json.dumps(told).encode())
        if pixels is not None:
            _send(answers, pixels)


def _decode(data: bytes, max_px: int, memory_bytes: int) -> tuple[Mapping[str, Any], bytes | None]:
    try:
        picture = open_photo(data, max_px)
        return {"size": picture.size}, picture.tobytes()
    except SourceError as error:
        return {"code": error.code, "message": error.message}, None
    except MemoryError:
        limit = f"decoding takes more than {memory_bytes >> 20:,} MB of memory; save the image anew"
        return {"code": "image_too_heavy", "message": limit}, None


def _limit_memory(memory_bytes: int) -> None:
    """Bound this process to what it has now and so much more."""
    with suppress(OSError, ValueError):  # not every system counts address space
        with open("/proc/self/statm") as sizes:
            held_bytes = int(sizes.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held_bytes + memory_bytes,) * 2)


def main() -> None:
    # Ctrl-C and a stop are for the worker, which may have a stage to finish; this process ends with its stdin.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else prints does not print between the pictures
    max_px, memory_bytes, cpu_s, wall_s = sys.argv[1:]
    with suppress(BrokenPipeError):
        _serve(int(max_px), int(memory_bytes), float(cpu_s), float(wall_s), sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
