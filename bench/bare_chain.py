"""The counterpart of the pipeline: a bare chain of three no-op Celery tasks, one solo worker, no state, no result.

`python -m bench.bare_chain BROKER_URL COUNT` publishes the chains, consumes them and prints the seconds from the first
task's start to the last task's end.
"""

import os
import signal
import sys
import time
from typing import Any

from celery import Celery, chain


def main(broker_url: str, count: int) -> None:
    app = Celery("bare", broker=broker_url, set_as_current=False)
    app.conf.update(task_ignore_result=True, worker_hijack_root_logger=False, worker_redirect_stdouts=False)
    clock: dict[str, Any] = {"done": 0}

    @app.task(name="bare.first")  # type: ignore[untyped-decorator]
    def first() -> None:
        clock.setdefault("start", time.perf_counter())

    @app.task(name="bare.second")  # type: ignore[untyped-decorator]
    def second() -> None:
        pass

    @app.task(name="bare.third")  # type: ignore[untyped-decorator]
    def third() -> None:
        clock["done"] += 1
        if clock["done"] == count:
            print(time.perf_counter() - clock["start"], flush=True)
            os.kill(os.getpid(), signal.SIGTERM)

    links = chain(first.si(), second.si(), third.si())
    for _ in range(count):
        links.apply_async()
    app.Worker(
        pool="solo", concurrency=1, loglevel="ERROR", quiet=True,
        without_gossip=True, without_mingle=True, without_heartbeat=True,
    ).start()  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
