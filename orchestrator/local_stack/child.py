"""Run one command for as long as its supervisor lives. Run as a script, by path, with the command as arguments.

The command takes this process's place, so its id, its signals and its exit status are the supervisor's to see. A forked
guard stays in its process group and reads stdin, a pipe that nobody writes to: its end means that the supervisor is
gone, killed -9 included, and the guard ends the group.
"""

import os
import signal
import sys
import time

GRACE_S = 10.0
NOT_FOUND = 127


def guard(group: int) -> None:
    """Wait for the supervisor's end, then ask the group to stop, then kill it (and with it, this guard)."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.read(0, 1)
    os.killpg(group, signal.SIGTERM)
    deadline_s = time.monotonic() + GRACE_S
    # The command is our parent: when it ends, another process is.
    while os.getppid() == group and time.monotonic() < deadline_s:
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)


def main() -> None:
    command = sys.argv[1:]
    if os.fork() == 0:
        try:
            guard(os.getpgrp())
        finally:
            os._exit(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(NOT_FOUND)


if __name__ == "__main__":
    main()
