"""What is done to a running fleet and its servers, one function a fault.

Owns the faults and the table of them. Each gives what it struck, so that the checker can tell whom it may excuse.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
from sqlalchemy import Engine

from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.transitions import Stage
from tests.chaos.fleet import Fleet
from tests.chaos.proxy import Mode
from tests.chaos.record import Event
from tests.chaos.servers import Servers

FIND_S = 25.0
FULL_S = 6.0
GIVE_UP_S = 12.0  # until every client has noticed that its connection is silent


@dataclass(frozen=True)
class Struck:
    """A fault that happened: when, until when its cause lasted, and the jobs whose worker it took away.

    `seen_by` tells how the death becomes known: by the supervisor, by the heartbeat alone; empty when nobody died.
    """

    name: str
    at_s: float
    until_s: float
    jobs: tuple[int, ...] = ()
    seen_by: str = ""


@dataclass
class World:
    """What faults work on. `later` holds what is to be done at a time: members started again, sleepers woken.

    No job is struck twice by the death of its worker: three times is poison, by design.
    """

    fleet: Fleet
    servers: Servers
    engine: Engine
    rng: random.Random
    stall_s: float
    later: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    spared: set[int] = field(default_factory=set)

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self.later.append((time.monotonic() + seconds, action))

    def catch_up(self) -> None:
        """Do what is due."""
        due = [entry for entry in self.later if entry[0] <= time.monotonic()]
        self.later = [entry for entry in self.later if entry not in due]
        for _, action in due:
            action()

    def find(self, stage: Stage | None = None, members: tuple[str, ...] = ()) -> Event | None:
        """A unit being worked on while another worker of its stage lives, by chance; None when none is for a while."""
        deadline_s = time.monotonic() + FIND_S
        while time.monotonic() < deadline_s:
            found = [
                event
                for event in self.fleet.at(stage)
                if self.spared.isdisjoint(job for job, _ in event.jobs)
                and (not members or self.fleet.member_of(event.pid) in members)
                and self._has_peer(event)
            ]
            if found:
                chosen = self.rng.choice(sorted(found, key=lambda event: event.worker))
                self.spared |= {job for job, _ in chosen.jobs}
                return chosen
            self.catch_up()
            time.sleep(0.02)
        return None

    def _has_peer(self, event: Event) -> bool:
        with reading(self.engine).connect() as connection:
            alive = queries.live_workers(connection, lease_s=self.fleet.settings.lease_s)
        return any(
            worker.id != event.worker and event.stage in worker.stages and worker.pid not in self.fleet.frozen
            for worker in alive
        )


Fault = Callable[[World], Struck | None]


MEASURED = ("kill-encode", "kill-sample", "kill-decode", "lose-host")
"""Faults whose end is timed: they wait until no other lasts."""


def kill_worker(world: World, stage: Stage) -> Struck | None:
    """SIGKILL to a worker at this stage; its supervisor sees it."""
    if (event := world.find(stage)) is None:
        return None
    os.kill(event.pid, signal.SIGSTOP)  # it does no more: what it holds now is what it dies with
    held = world.fleet.held_by(event.worker)
    os.kill(event.pid, signal.SIGKILL)
    return _now(f"worker killed in {stage}", held, "supervisor")


def stop_worker(world: World) -> Struck | None:
    """SIGTERM to a worker process behind its supervisor's back."""
    if (event := world.find()) is None:
        return None
    os.kill(event.pid, signal.SIGTERM)
    return _instant("worker told to stop")


def lose_host(world: World) -> Struck | None:
    """A machine loses its power: supervisor, guard and worker are gone, nobody tells."""
    hosts = tuple(member for member in world.fleet.members if member.startswith("host"))
    if (event := world.find(members=hosts)) is None or (member := world.fleet.member_of(event.pid)) is None:
        return None
    os.kill(event.pid, signal.SIGSTOP)
    held = world.fleet.held_by(event.worker)
    world.fleet.lose(member)
    world.after(3.0, partial(world.fleet.start, member))
    return _now("host lost", held, "heartbeat")


def freeze_worker(world: World) -> Struck | None:
    """SIGSTOP for twice the lease: a zombie that wakes."""
    if (event := world.find()) is None:
        return None
    os.kill(event.pid, signal.SIGSTOP)
    world.fleet.frozen.add(event.pid)

    def wake() -> None:
        world.fleet.frozen.discard(event.pid)
        if psutil.pid_exists(event.pid):
            os.kill(event.pid, signal.SIGCONT)

    world.after(2 * world.fleet.settings.lease_s, wake)
    return _instant("worker frozen")


def kill_dispatcher(world: World) -> Struck | None:
    """SIGKILL to a dispatcher: the one that stands alone, or the one under `kontext up`."""
    if world.rng.random() < 0.5:
        world.fleet.lose("dispatch")
        world.after(1.0, partial(world.fleet.start, "dispatch"))
        return _instant("dispatcher killed")
    for process in world.fleet.family("up")[1:]:
        try:
            if process.cmdline()[-1] == "dispatch":
                process.kill()
                return _instant("dispatcher killed")
        except (psutil.Error, IndexError):
            continue
    return None


def kill_up(world: World) -> Struck | None:
    """SIGKILL to `kontext up` itself; what it started ends by itself, and the next `up` takes over."""
    world.fleet.look()
    os.kill(world.fleet.pid("up"), signal.SIGKILL)
    world.after(1.0, partial(world.fleet.start, "up"))
    return _instant("`kontext up` killed")


def restart_valkey(world: World, number: signal.Signals) -> Struck:
    began_s = time.monotonic()
    world.servers.end("valkey", number)
    time.sleep(world.rng.uniform(0, 2))
    world.servers.start()
    return Struck("Valkey restarted" if number == signal.SIGTERM else "Valkey killed", began_s, time.monotonic())


def flush_valkey(world: World) -> Struck:
    """FLUSHALL: every bell and every handoff is gone."""
    with world.servers.valkey() as client:
        client.flushall()
    return _instant("FLUSHALL")


def disturb_bells(world: World) -> Struck:
    """Every bell that waits is doubled, and all of them are shuffled."""
    with world.servers.valkey() as client:
        for key in client.scan_iter("*", _type="list"):
            bells = client.lrange(key, 0, -1) * 2
            world.rng.shuffle(bells)
            if bells:
                client.rpush(key, *bells)
    return _instant("bells doubled and shuffled")


def restart_postgres(world: World, number: signal.Signals) -> Struck | None:
    postgres, began_s = world.servers.postgres, time.monotonic()
    if postgres is None:
        return None
    postgres.end(number)
    time.sleep(world.rng.uniform(0, 2))
    postgres.start()
    return Struck(
        "PostgreSQL restarted" if number == signal.SIGINT else "PostgreSQL crashed", began_s, time.monotonic()
    )


def restart_s3(world: World) -> Struck:
    began_s = time.monotonic()
    world.servers.end("seaweedfs", signal.SIGKILL)
    world.servers.start()
    return Struck("S3 server killed", began_s, time.monotonic())


def disturb_network(world: World, to: str, mode: Mode, seconds: float) -> Struck | None:
    """Put the proxy before a server into a mode for a while; 0 stands for the world's long stall."""
    proxy, began_s = vars(world.servers)[to], time.monotonic()
    if proxy is None:
        return None
    proxy.during(mode, seconds or world.stall_s)
    return Struck(f"{to}: {mode.replace('_', '-')}", began_s, time.monotonic())


def fill_disk(world: World) -> Struck:
    """No room is left where results go, for a while."""
    disk, began_s = Path(str(world.fleet.settings.results_uri)), time.monotonic()
    ballast = disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    time.sleep(FULL_S)
    ballast.unlink()
    return Struck("disk full", began_s, time.monotonic())


def cut_connections(world: World, to: str, how: str) -> Struck | None:
    """Every open connection to a server is reset, or goes silent for ever."""
    proxy = vars(world.servers)[to]
    if proxy is None:
        return None
    {"reset": proxy.reset, "half-open": proxy.silence}[how]()
    at_s = time.monotonic()
    return Struck(f"{to}: connections {how}", at_s, at_s + (GIVE_UP_S if how == "half-open" else 0.0))


FAULTS: Mapping[str, Fault] = {
    **{f"kill-{stage}": partial(kill_worker, stage=stage) for stage in Stage},
    "stop": stop_worker,
    "lose-host": lose_host,
    "freeze": freeze_worker,
    "kill-dispatcher": kill_dispatcher,
    "kill-up": kill_up,
    "restart-valkey": partial(restart_valkey, number=signal.SIGTERM),
    "kill-valkey": partial(restart_valkey, number=signal.SIGKILL),
    "flush": flush_valkey,
    "bells": disturb_bells,
    "restart-postgres": partial(restart_postgres, number=signal.SIGINT),
    "crash-postgres": partial(restart_postgres, number=signal.SIGQUIT),
    "fill-disk": fill_disk,
    "kill-s3": restart_s3,
    "storm-s3": partial(disturb_network, to="s3", mode=Mode.STORM, seconds=4.0),
    "stall-s3": partial(disturb_network, to="s3", mode=Mode.STALL, seconds=0.0),
    "slow-s3": partial(disturb_network, to="s3", mode=Mode.SLOW, seconds=5.0),
    "refuse-broker": partial(disturb_network, to="broker", mode=Mode.REFUSE, seconds=2.0),
    "stall-broker": partial(disturb_network, to="broker", mode=Mode.STALL, seconds=3.0),
    "half-open-broker": partial(cut_connections, to="broker", how="half-open"),
    "reset-broker": partial(cut_connections, to="broker", how="reset"),
    "reset-database": partial(cut_connections, to="database", how="reset"),
    "stall-database": partial(disturb_network, to="database", mode=Mode.STALL, seconds=3.0),
}


def _now(name: str, held: tuple[int, ...], seen_by: str) -> Struck:
    at_s = time.monotonic()
    return Struck(name, at_s, at_s, held, seen_by)


def _instant(name: str) -> Struck:
    at_s = time.monotonic()
    return Struck(name, at_s, at_s)
