"""`make chaos`: the whole chaos suite, printed as one table. `--only` chooses a part, `--seed` another schedule."""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench.figure import machine
from tests.chaos import million
from tests.chaos.checker import Figure, check, render
from tests.chaos.drill import Plan, Run, drill, summary
from tests.chaos.plans import BARS_S, FULL, LAPTOP, SHORT, SHORT_BARS_S

DISK_BYTES = 16 << 20


def main() -> int:
    """Run the parts, print the table; 1 when a bar was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--only", choices=("fleet", "laptop", "million", "short"), action="append")
    parser.add_argument("--seed", type=int, default=FULL.seed)
    parser.add_argument("--pending", type=int, default=1_000_000, help="jobs of the part `million`")
    given = parser.parse_args()
    chosen = given.only or ["fleet", "laptop", "million"]
    failed = False
    with tempfile.TemporaryDirectory(prefix="kontext-chaos-", ignore_cleanup_errors=True) as scratch:
        for name, plan, bars_s in (
            ("fleet", FULL, BARS_S), ("laptop", LAPTOP, BARS_S), ("short", SHORT, SHORT_BARS_S),
        ):  # fmt: skip
            if name in chosen:
                folder = Path(scratch) / name
                folder.mkdir()
                failed |= _tell(*_run(replace(plan, seed=given.seed), folder, bars_s))
        if "million" in chosen:
            folder = Path(scratch) / "million"
            folder.mkdir()
            failed |= _tell("a million pending jobs", million.measure(folder, given.pending))
        if failed:
            _keep(Path(scratch))
    print(machine())
    return int(failed)


def _tell(title: str, figures: list[Figure]) -> bool:
    """Print a part's table as soon as it has ended; gives whether it missed a bar."""
    print(f"\n{title}\n\n{render(figures)}\n", flush=True)
    return any(not figure.holds for figure in figures)


def _run(plan: Plan, folder: Path, bars_s: Mapping[str, float]) -> tuple[str, list[Figure]]:
    figures: list[Figure] = []
    titles: list[str] = []

    def look(run: Run) -> None:
        figures.extend(check(run, bars_s))
        titles.append(
            f"{plan.database}, seed {plan.seed}: {len(run.struck)} faults in {run.seconds:.0f} s "
            f"({summary(run.struck)})"
        )

    began_s = time.monotonic()
    say = lambda text: print(f"{time.monotonic() - began_s:6.1f} s  {text}", flush=True)  # noqa: E731
    with _small_disk(folder) as disk:
        results = {"results_uri": str(disk)} if "fill-disk" in plan.faults and disk is not None else {}
        faults = {name: times for name, times in plan.faults.items() if name != "fill-disk" or results}
        drill(replace(plan, faults=faults, changed={**plan.changed, **results}), folder, say, look)
    return titles[0], figures


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path | None]:
    """A small file system of its own; None where this user may not mount one."""
    disk = folder / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no full disk: {error}")
        yield None
        return
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=False)


def _keep(scratch: Path) -> None:
    kept = Path(tempfile.mkdtemp(prefix="kontext-chaos-failed-"))
    for log in [*scratch.rglob("*.log"), *scratch.glob("*/record")]:
        (kept / "-".join(log.relative_to(scratch).parts)).write_bytes(log.read_bytes())
    print(f"a bar was missed; logs and record are kept in {kept}")


if __name__ == "__main__":
    sys.exit(main())
