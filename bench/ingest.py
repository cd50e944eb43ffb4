"""Ingest: a CSV of many rows into SQL, against the database's own bulk load of the same rows into the same tables."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.databases import Database, fresh_database
from bench.figure import Figure

RSS_BAR_BYTES = 300 * 10**6


def measure(folder: Path, *, rows: int, repeats: int) -> list[Figure]:
    """Figures for SQLite and PostgreSQL, each side in a process of its own."""
    catalogue = folder / "catalogue.csv"
    write_catalogue(catalogue, rows)
    figures = []
    for kind in ("sqlite", "postgresql"):
        ours: list[float] = []
        theirs: list[float] = []
        peaks: list[int] = []
        for _ in range(repeats):
            for side in ("ours", "theirs"):
                with fresh_database(folder, kind) as database:
                    report = _run(side, database, catalogue, rows)
                if side == "ours":
                    ours.append(rows / report["seconds"])
                    peaks.append(report["rss_bytes"])
                else:
                    theirs.append(rows / report["seconds"])
        bulk = "executemany" if kind == "sqlite" else "COPY"
        peak = max(peaks)
        figures.append(
            Figure(
                f"ingest {rows:,} rows, {kind}, against {bulk}", "rows/s", ours, theirs, 0.3,
                f"peak {peak / 1e6:.0f} MB of {RSS_BAR_BYTES / 1e6:.0f}", peak <= RSS_BAR_BYTES,
            )
        )  # fmt: skip
    return figures


def write_catalogue(path: Path, rows: int) -> None:
    """A catalogue as a shop exports it: image, custom_id, and a column of its own."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "custom_id", "season"])
        writer.writerows(
            (f"photos/{i // 1000:04d}/{i:07d}.jpg", f"SKU-{i:07d}", f"SS{i % 30:02d}") for i in range(rows)
        )


def _run(side: str, database: Database, catalogue: Path, rows: int) -> Any:
    command = [sys.executable, "-m", "bench.ingest", side, database.url, str(catalogue), str(rows)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def _ours(url: str, catalogue_path: str) -> float:
    from orchestrator.batches import create_batch, ingest
    from orchestrator.catalogs import open_catalogue
    from orchestrator.settings import Settings
    from orchestrator.state.database import open_database

    engine = open_database(url)
    catalogue, request = open_catalogue(catalogue_path, Settings()), _request()
    start = time.perf_counter()
    ingest(engine, create_batch(engine, catalogue, request), catalogue, request)
    return time.perf_counter() - start


def _theirs(url: str, catalogue_path: str) -> float:
    """Everything prepared beforehand; only the load itself is timed."""
    from orchestrator.batches import create_batch
    from orchestrator.catalogs import open_catalogue
    from orchestrator.row_reader import RowReader
    from orchestrator.settings import Settings
    from orchestrator.state.bulk import COLUMNS
    from orchestrator.state.database import open_database

    engine = open_database(url)
    catalogue, request = open_catalogue(catalogue_path, Settings()), _request()
    batch = create_batch(engine, catalogue, request)
    reader = RowReader(batch.id, catalogue, request.checkpoint.defaults, request.asked)
    if engine.dialect.name == "sqlite":
        jobs = [reader.read(row) for row in catalogue.rows()]
        with engine.connect() as opened:
            connection: Any = opened.connection.driver_connection
            statement = f"INSERT INTO jobs ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
            start = time.perf_counter()
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(statement, jobs)
            connection.execute("COMMIT")
            return time.perf_counter() - start
    blocks = _join_blocks("\t".join(map(_copy_text, reader.read(row))) + "\n" for row in catalogue.rows())
    with engine.connect() as opened:
        driver: Any = opened.connection.driver_connection
        start = time.perf_counter()
        with driver.cursor() as cursor, cursor.copy(f"COPY jobs ({', '.join(COLUMNS)}) FROM STDIN") as copy:
            for block in blocks:
                copy.write(block)
        driver.commit()
        return time.perf_counter() - start


def _copy_text(value: Any) -> str:
    return r"\N" if value is None else str(value).replace("\\", "\\\\")


def _join_blocks(lines: Any) -> list[bytes]:
    blocks, block = [], []
    for line in lines:
        block.append(line)
        if len(block) == 5_000:
            blocks.append("".join(block).encode())
            block = []
    return [*blocks, "".join(block).encode()]


def _request() -> Any:
    from kontext_model.revision import CheckpointRef, Defaults
    from orchestrator.batches import Request

    return Request(
        {"preset": "flat-lay"}, "s3://bench/results", CheckpointRef("bench", None, "0" * 40, Defaults()), "bench"
    )


def peak_rss_bytes() -> int:
    """Peak resident memory of this process. Not `ru_maxrss`: that one survives exec and tells the parent's peak."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


if __name__ == "__main__":
    side, url, catalogue, _ = sys.argv[1:]
    seconds = {"ours": _ours, "theirs": _theirs}[side](url, catalogue)
    print(json.dumps({"seconds": seconds, "rss_bytes": peak_rss_bytes()}))
