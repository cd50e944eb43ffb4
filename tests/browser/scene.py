"""A scene for the gallery: a shop's spring lookbook decided on, three nights of a schedule, a large batch at work.

All of it is made through the API, by workers with the small checkpoint. Only its times are moved into the past.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
from sqlalchemy import update

from kontext_model.wardrobe import PROMPTS, draw
from orchestrator import drafts
from orchestrator.drafts import SentFile
from orchestrator.state.database import open_database
from orchestrator.state.tables import batches, jobs, schedule_runs
from orchestrator.storage import open_store
from tests.browser.site import Site, await_true

SHOP = "s3://kontext-local/shop"
SHAPES = ((256, 256), (256, 256), (222, 296), (256, 256))
GREY = PROMPTS["grey"][0]
APPROVED, REJECTED, AGAIN = (0, 1, 2, 4, 5, 7, 8, 9, 11), (3,), 6
NIGHT = "lookbook-nightly"
TIMES = ("created_at", "started_at", "ended_at", "fire_at", "stage_at", "queued_at",
         *(f"{stage}_{end}" for stage in ("encode", "sample", "decode") for end in ("from", "to")))  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """Where the pages are that have something to show."""

    running: str
    decided: str
    job: int
    draft: str


class Shop:
    """Puts photos and catalogues into S3, and asks the site to work on them."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.store = open_store(SHOP, site.settings)
        self.client = httpx2.Client(base_url=site.url, headers={"authorization": f"Bearer {site.key}"}, timeout=60)

    def ask(self, method: str, path: str, **given: Any) -> Any:
        """The JSON of an answer that is a success."""
        answer = self.client.request(method, path, **given)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def photograph(self, names: Sequence[str], first: int) -> None:
        """Put a photo of another person into the shop under each of these names."""
        for number, name in enumerate(names, start=first):
            self.store.replace(f"photos/{name}.jpg", photo(number))

    def publish(self, name: str, names: Sequence[str], extra: Sequence[str] = ()) -> str:
        """Put a catalogue of these photos into the shop; gives its URI."""
        rows = [f"photos/{each}.jpg,{each},{GREY if n % 6 == 4 else ''},\n" for n, each in enumerate(names)]
        self.store.replace(name, "".join(["image,custom_id,prompt,steps\n", *rows, *extra]).encode())
        return f"{SHOP}/{name}"

    def submit(self, catalogue: str, **given: Any) -> str:
        """A batch of a catalogue; gives its id."""
        wanted = {"catalogue": catalogue, "preset": "flat-lay", **given}
        return str(self.ask("POST", "/v1/batches", json=wanted)["id"])

    def finish(self, batch_id: str) -> list[dict[str, Any]]:
        """Wait until a batch has ended; gives its jobs."""
        await_true(lambda: self.ask("GET", f"/v1/batches/{batch_id}")["status"] == "completed", batch_id, 180)
        found: list[dict[str, Any]] = self.ask("GET", f"/v1/batches/{batch_id}/jobs?limit=200")["data"]
        return found


def set_scene(site: Site) -> Scene:
    """Make it all; the large batch is at work when this returns."""
    shop = Shop(site)
    for name, scope in (("shop system", "submit"), ("photo studio", "submit"), ("window display", "read")):
        made = shop.ask("POST", "/v1/keys", json={"name": name, "scope": scope})
    shop.ask("DELETE", f"/v1/keys/{made['id']}")
    decided, job = _lookbook(shop)
    _nights(shop)
    running = _large(shop)
    return Scene(running, decided, job, _draft(site))


def _lookbook(shop: Shop) -> tuple[str, int]:
    """A batch that somebody has looked through; one picture was made anew."""
    names = [f"SP27-{401 + number}" for number in range(14)]
    shop.photograph(names, 0)
    batch_id = shop.submit(shop.publish("spring-2027.csv", names))
    ids = [job["id"] for job in shop.finish(batch_id)]
    shop.ask("POST", f"/v1/jobs/{ids[AGAIN]}/regenerate")
    shop.finish(batch_id)
    for decision, chosen in (("approved", APPROVED), ("rejected", REJECTED)):
        for number in chosen:
            shop.ask("POST", f"/v1/jobs/{ids[number]}/decision", json={"decision": decision})
    _move(shop.site, batch_id, 25 * 60)
    return batch_id, ids[AGAIN]


def _nights(shop: Shop) -> None:
    """Three runs of a schedule: all new, some changed, nothing to do; and two schedules that have not run."""
    names = [f"NA-{1041 + number}" for number in range(12)]
    shop.photograph(names, 40)
    catalogue = shop.publish("arrivals.csv", names)
    for name, cron, zone, preset in (
        (NIGHT, "0 2 * * *", "Asia/Shanghai", "flat-lay"),
        ("details-weekly", "30 4 * * MON", "Europe/Berlin", "detail-crop"),
        ("outlet-hourly", "0 * * * *", "Asia/Shanghai", "flat-lay"),
    ):
        wanted = {"name": name, "cron": cron, "time_zone": zone, "catalogue": catalogue, "options": {"preset": preset}}
        shop.ask("POST", "/v1/schedules", json=wanted)
    shop.ask("PATCH", "/v1/schedules/outlet-hourly", json={"paused": True})
    tonight = datetime.now(UTC).replace(hour=18, minute=0, second=0, microsecond=0)
    if tonight > datetime.now(UTC):
        tonight -= timedelta(days=1)
    path = f"/v1/schedules/{NIGHT}/runs?limit=1"
    for nights_ago in (2, 1, 0):
        shop.ask("POST", f"/v1/schedules/{NIGHT}/fire")
        await_true(lambda: shop.ask("GET", path)["data"][0]["state"] == "ended", "the night has passed", 180)
        run = shop.ask("GET", path)["data"][0]
        by_s = run["fire_at"] - (tonight - timedelta(days=nights_ago)).timestamp()
        _move(shop.site, run["batch_id"], by_s)
        if nights_ago == 2:
            more = [f"NA-{1053 + number}" for number in range(4)]
            shop.photograph(more, 60)
            shop.photograph(names[:2], 70)
            shop.publish("arrivals.csv", [*names, *more])


def _move(site: Site, batch_id: str, by_s: float) -> None:
    """Move a batch, and the run that made it, into the past by so many seconds."""
    engine = open_database(str(site.settings.database_url))
    of_run = schedule_runs.c.batch_id == batch_id
    with engine.begin() as connection:
        of_batch = ((batches, batches.c.id == batch_id), (jobs, jobs.c.batch_id == batch_id))
        for table, chosen in ((schedule_runs, of_run), *of_batch):
            moved = {name: table.c[name] - by_s for name in TIMES if name in table.c}
            connection.execute(update(table).where(chosen).values(moved))
        connection.execute(update(schedule_runs).where(of_run).values(by_request=0))
    engine.dispose()


def _large(shop: Shop) -> str:
    """A batch that goes on for minutes, with rows and photos that are wrong."""
    names = [f"SU27-{1001 + number}" for number in range(300)]
    shop.photograph(names[:48], 100)
    for number in range(48, len(names)):  # each its own bytes, none drawn anew
        shop.store.replace(f"photos/{names[number]}.jpg", photo(100 + number % 48) + number.to_bytes(2, "big"))
    for name in (names[5], names[17], names[30]):
        shop.store.replace(f"photos/{name}.jpg", photo(1)[:900])
    wrong = [*(f"photos/{name}.jpg,{name},,\n" for name in ("SU27-0998", "SU27-0999")),
             "photos/SU27-1002.jpg,SU27-2002,,many\n"]  # fmt: skip
    batch_id = shop.submit(shop.publish("summer-2027.csv", names, wrong))
    await_true(lambda: _succeeded(shop, batch_id) >= 40, "pictures are made", 180)
    return batch_id


def _succeeded(shop: Shop, batch_id: str) -> int:
    return int(shop.ask("GET", f"/v1/batches/{batch_id}")["request_counts"]["succeeded"])


def _draft(site: Site) -> str:
    """What somebody dropped on the page New batch: a table of their own making, and photos, one of them forgotten."""
    folder = site.folder / "dropped"
    folder.mkdir()
    rows = [["Photo", "SKU", "Colour", "Season"]]
    sent = []
    for number, colour in enumerate(("olive", "navy", "rust", "sand", "plum", "teal", "black", "mint")):
        path = folder / f"look-{number + 1}.jpg"
        path.write_bytes(photo(200 + number))
        rows.append([path.name, f"AW27-{311 + number}", colour, "autumn"])
        sent.append(SentFile(path.name, path))
    rows += [["look-9.jpg", "AW27-319", "white", "autumn"]]
    table = folder / "autumn-2027.csv"
    with table.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows(rows)
    return drafts.save([SentFile(table.name, table), *sent], site.settings).id


def photo(number: int) -> bytes:
    """A drawn photo as JPEG bytes."""
    stream = io.BytesIO()
    draw(number, SHAPES[number % len(SHAPES)], "flat-lay").photo.save(stream, "JPEG", quality=92)
    return stream.getvalue()
