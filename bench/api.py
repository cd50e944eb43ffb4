"""The API at size: its slowest page or list over a million jobs, and a hundred thousand items in one request.

Both are bars, not comparisons: "theirs" is the bar itself, as a rate, so that 1 is reached and more is better.
"""

import json
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from sqlalchemy import Engine, text
from starlette.testclient import TestClient

from bench.databases import fresh_database
from bench.figure import Figure
from orchestrator.access.keys import create_key
from orchestrator.access.scopes import Scope
from orchestrator.api.app import build_app
from orchestrator.api.cursors import write_cursor
from orchestrator.settings import Settings
from orchestrator.state.database import open_database

PAGE_BAR_S, SUBMIT_BAR_S, RSS_BAR_BYTES = 0.08, 6.0, 300 * 10**6
BATCHES, LARGE = 200, "b000"
SERVE = """
import sys
from orchestrator.api.app import serve
from orchestrator.settings import Settings
serve(Settings.model_validate_json(sys.argv[1]), "127.0.0.1", 0, lambda url: print(url, flush=True))
"""


def measure(folder: Path, *, jobs: int, items: int, repeats: int) -> list[Figure]:
    """The two figures, on PostgreSQL."""
    with fresh_database(folder, "postgresql") as database:
        engine = open_database(database.url)
        fill(engine, jobs)
        settings = Settings(
            home=folder / "home", database_url=database.url, broker_url="redis://127.0.0.1:1/0",
            results_uri=str(folder / "results"), api_requests_per_s=1e6,
        )  # fmt: skip
        slowest = page_seconds(engine, settings, repeats=40 * repeats)
        engine.dispose()
    name, p95_s = max(slowest.items(), key=lambda found: found[1])
    with fresh_database(folder, "postgresql") as database:
        settings = settings.model_copy(update={"database_url": database.url})
        taken = [submit_seconds(settings, items) for _ in range(repeats)]
    peak = max(rss for _, rss in taken)
    seconds = [items / seconds for seconds, _ in taken]
    return [
        Figure(
            f"slowest page or list over {jobs:,} jobs, p95 of server time, against {PAGE_BAR_S * 1000:.0f} ms",
            "/s", [1 / p95_s], [1 / PAGE_BAR_S], 1.0, f"{name}: {p95_s * 1000:.0f} ms",
        ),
        Figure(
            f"{items:,} JSON items in one request until 202, against {SUBMIT_BAR_S:.0f} s",
            "items/s", seconds, [items / SUBMIT_BAR_S], 1.0,
            f"peak {peak / 1e6:.0f} MB of {RSS_BAR_BYTES / 1e6:.0f}", peak <= RSS_BAR_BYTES,
        ),
    ]  # fmt: skip


def fill(engine: Engine, jobs: int) -> None:
    """A shop's nights: many ended batches, one that runs and holds a fifth of all jobs, some failures in each."""
    large = jobs // 5
    small = (jobs - large) // (BATCHES - 1)
    with engine.begin() as connection:
        connection.execute(
            text(f"""
            INSERT INTO batches (id, request, catalogue, image_root, columns, options, status, checkpoint, revision,
                numerics, handoff_bytes, results_uri, total, created_at, started_at, ended_at)
            SELECT 'b' || lpad(n::text, 3, '0'), 'r' || n, 's3://shop/' || n || '.csv', 's3://shop', '["image"]',
                '{{}}',
                CASE WHEN n = 0 THEN 'running' ELSE 'completed' END, 'c', repeat('a', 64), 'float32', 1000,
                '/results/' || n, CASE WHEN n = 0 THEN {large} ELSE {small} END,
                extract(epoch FROM now()) - (n + 1) * 7200,
                extract(epoch FROM now()) - (n + 1) * 7200,
                CASE WHEN n = 0 THEN NULL ELSE extract(epoch FROM now()) - n * 7200 END
            FROM generate_series(0, {BATCHES - 1}) AS n""")
        )
        connection.execute(
            text("""
            INSERT INTO jobs (batch_id, line, custom_id, image, recipe_id, state, code, message, ended_at, result,
                sha256, encode_s, sample_s, decode_s, attempt)
            SELECT b.id, line, 'SKU-' || lpad(line::text, 7, '0'), 'photos/' || line || '.jpg', 'r', found.state,
                CASE WHEN found.state = 'failed' THEN 'code_' || line % 7 END,
                CASE WHEN found.state = 'failed' THEN 'row ' || line || ' is bad' END,
                CASE WHEN found.state IN ('succeeded', 'failed') THEN b.started_at
                    + line * CASE WHEN b.status = 'running' THEN 14400.0 ELSE 7200.0 END / b.total END,
                CASE WHEN found.state = 'succeeded' THEN '/results/' || b.id || '/' || line || '.png' END,
                CASE WHEN found.state = 'succeeded' THEN repeat('f', 64) END, 0.1, 2.0, 0.2, 0
            FROM batches b CROSS JOIN LATERAL generate_series(1, b.total) AS line
            CROSS JOIN LATERAL (SELECT CASE WHEN line % 50 = 0 THEN 'failed'
                WHEN b.status = 'running' AND line > b.total / 2 THEN 'pending'
                ELSE 'succeeded' END AS state) AS found""")
        )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


def page_seconds(engine: Engine, settings: Settings, *, repeats: int) -> dict[str, float]:
    """The 95th percentile of each page's and list's seconds, in this process, after one look at each."""
    key = create_key(engine, "bench", Scope.ADMIN).secret
    found: dict[str, float] = {}
    with TestClient(build_app(settings), headers={"authorization": f"Bearer {key}"}) as client:
        for path in pages(client):
            taken = []
            for _ in range(repeats + 1):
                began_s = time.perf_counter()
                answer = client.get(path)
                taken.append(time.perf_counter() - began_s)
                assert answer.status_code == 200, (path, answer.status_code, answer.text[:300])
            found[path] = statistics.quantiles(taken[1:], n=20, method="inclusive")[-1]
    return found


def pages(client: TestClient) -> list[str]:
    """Lists of the API, first and deep pages, and the pages people look at."""
    of_large = f"/v1/batches/{LARGE}/jobs"
    found = [
        "/v1/batches?limit=100", f"/v1/batches/{LARGE}", "/v1/batches/b007", "/v1/overview", "/v1/queues",
        "/v1/workers", "/v1/keys", "/v1/audit", of_large, "/v1/jobs/1",
    ]  # fmt: skip
    for query in (
        "state=succeeded",
        "state=failed",
        "code=code_3",
        "text=SKU-0199999",
        "decision=none",
        "state=pending",
    ):
        found.append(f"{of_large}?{query}")
    for query in ("", "state=succeeded&", "state=pending&"):
        page = client.get(f"{of_large}?{query}limit=1000").json()
        for _ in range(20):
            page = client.get(f"{of_large}?{query}limit=1000&after={page['next']}").json()
        found.append(f"{of_large}?{query}after={page['next']}")
    seen = ["/", "/?part=live", "/batches", "/batches?q=s3", "/workers", "/schedules", "/presets", "/keys", "/audit",
            "/new", "/jobs/1"]  # fmt: skip
    deep = write_cursor(3000, 1)
    for base in (f"/batches/{LARGE}", "/batches/b007"):
        seen += [base, f"{base}/sheet", f"{base}/sheet?show=none&after={deep}"]
        seen += [
            f"{base}?{query}" for query in ("part=live", "state=failed&code=code_3", "q=SKU-0001", f"after={deep}")
        ]
    return found + seen


def submit_seconds(settings: Settings, items: int) -> tuple[float, int]:
    """Seconds until 202 and the server's peak of memory in bytes, for so many items in one request."""
    engine = open_database(settings.database_url or "")
    key = create_key(engine, "bench", Scope.SUBMIT).secret
    engine.dispose()
    rows = [
        {"custom_id": f"SKU-{n:07d}", "image": f"s3://shop/{n:07d}.jpg", "season": f"SS{n % 30}"} for n in range(items)
    ]
    body = json.dumps({"preset": "flat-lay", "items": rows}).encode()
    server = subprocess.Popen([sys.executable, "-c", SERVE, settings.model_dump_json()], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().decode().strip()
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        request = urllib.request.Request(f"{url}/v1/batches", body, headers, method="POST")
        began_s = time.perf_counter()
        with urllib.request.urlopen(request, timeout=120) as answer:
            assert answer.status == 202 and json.load(answer)["request_counts"]["total"] == items
        seconds = time.perf_counter() - began_s
        status = Path(f"/proc/{server.pid}/status").read_text()
        return seconds, int(status.partition("VmHWM:")[2].split()[0]) * 1024
    finally:
        server.terminate()
        server.communicate(timeout=20)


if __name__ == "__main__":
    import tempfile

    from bench.figure import render

    with tempfile.TemporaryDirectory() as scratch:
        print(render(measure(Path(scratch), jobs=int(sys.argv[1]), items=int(sys.argv[2]), repeats=1)))
