"""`make bench`: every comparison in one run, one table. `--quick` is smaller, for a look; its figures claim nothing.

Apart stands `bench.full_size`, which needs a graphics card.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from bench import api, images, ingest, pipeline, pollers
from bench.figure import Figure, render
from orchestrator.local_stack import ensure_stack, stop_stack
from orchestrator.settings import Settings

PARTS = ("ingest", "api", "pipeline", "images", "pollers")


def main() -> int:
    """Measure, print the table; 1 when a bar was missed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, help="runs of each side (default 3, quick 1)")
    parser.add_argument("--only", choices=PARTS, action="append")
    given = parser.parse_args()
    chosen = given.only or PARTS
    repeats = given.repeats or (1 if given.quick else 3)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="kontext-bench-") as scratch:
        folder = Path(scratch)
        settings = ensure_stack(Settings(home=folder / "home"))
        try:
            if "ingest" in chosen:
                figures += ingest.measure(folder, rows=100_000 if given.quick else 1_000_000, repeats=repeats)
            if "api" in chosen:
                jobs = 100_000 if given.quick else 1_000_000
                figures += api.measure(folder, jobs=jobs, items=100_000, repeats=repeats)
            if "pipeline" in chosen:
                assert settings.broker_url is not None
                count = 300 if given.quick else 2_000
                figures += pipeline.measure(folder, settings.broker_url, count=count, repeats=repeats)
            if "images" in chosen:
                figures += images.measure(folder, settings, photos=16 if given.quick else 64, repeats=repeats)
            if "pollers" in chosen:
                figures += pollers.measure(folder, settings, seconds=10 if given.quick else 40, pairs=repeats)
        finally:
            stop_stack(Settings(home=folder / "home"))
            print(render(figures))  # what was measured before a failure too
    return 0 if all(figure.passed for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
