"""Start one server that outlives its starter. Run as a script, by path, with the server's command as arguments.

Prints the server's process id, then waits for one byte on stdin: the starter sends it once it has written the id
down. A starter killed before that closes the pipe, and no server starts that nobody knows of. What follows the byte
on stdin is the server's to read.
"""

import os
import sys


def main() -> None:
    if os.fork():
        os._exit(0)  # the server's parent is now init: no zombie stays when it ends
    os.setsid()
    os.write(1, f"{os.getpid()}\n".encode())
    os.dup2(2, 1)
    if os.read(0, 1) == b"g":
        os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
