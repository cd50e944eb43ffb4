"""The plans of the chaos suite: the whole one, the one of a laptop, and the short one inside `make test`."""

from dataclasses import replace

from tests.chaos.drill import Plan

BARS_S = {"supervisor": 5.0, "heartbeat": 20.0}
SLEEPS = {"encode": 0.3, "sample": 1.5, "decode": 0.3}
FULL = Plan(
    database="postgresql",
    seed=1,
    jobs=2400,
    faults={
        "kill-encode": 6, "kill-sample": 8, "kill-decode": 6, "stop": 2, "lose-host": 5, "freeze": 4,
        "kill-dispatcher": 4, "kill-up": 3, "restart-valkey": 2, "kill-valkey": 2, "flush": 2, "bells": 3,
        "restart-postgres": 3, "crash-postgres": 2, "kill-s3": 1, "storm-s3": 3, "stall-s3": 1, "slow-s3": 1,
        "refuse-broker": 2, "stall-broker": 1, "half-open-broker": 2, "reset-broker": 2, "reset-database": 3,
        "stall-database": 1,
    },
    members=("up", "dispatch", "host-a", "host-c", "host-d"),
    sleeps=SLEEPS,
)  # fmt: skip
LAPTOP = replace(
    FULL,
    database="sqlite",
    jobs=400,
    faults={
        "kill-encode": 1, "kill-sample": 2, "kill-decode": 1, "lose-host": 1, "freeze": 1, "kill-dispatcher": 1,
        "kill-up": 1, "kill-valkey": 1, "flush": 1, "bells": 1, "fill-disk": 2, "storm-s3": 1, "half-open-broker": 1,
    },
    members=("up", "dispatch", "host-a", "host-b"),
)  # fmt: skip
SHORT = Plan(
    database="postgresql",
    seed=7,
    jobs=120,
    faults={
        "kill-encode": 1, "kill-sample": 1, "kill-decode": 1, "lose-host": 1, "freeze": 1, "kill-up": 1, "flush": 1,
        "bells": 1, "restart-postgres": 1, "kill-valkey": 1, "storm-s3": 1, "half-open-broker": 1, "reset-database": 1,
        "stall-s3": 1,
    },
    members=("up", "dispatch", "host-a", "host-b"),
    sleeps={"encode": 0.15, "sample": 0.6, "decode": 0.15},
    gap_s=(0.3, 1.0),
    stall_s=2.0,
    end_s=240.0,
    batch_jobs=60,
    changed={"heartbeat_s": 0.5, "lease_s": 4.0, "watchdog_s": 3.0},
)  # fmt: skip
# Wide: this one is about what is lost and done twice, and must hold on a machine that does other things beside.
SHORT_BARS_S = {"supervisor": 30.0, "heartbeat": 45.0}
