"""The manifest mirrors the catalogue and says what became of each row."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from orchestrator import manifest
from orchestrator.batches import create_batch, ingest
from orchestrator.catalogs import open_catalogue
from orchestrator.manifest import describe_jobs, write_files, write_manifest
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.bulk import insert_jobs
from orchestrator.state.queries import Batch, Finished, Group, Retried
from orchestrator.state.transitions import JobState, Stage
from orchestrator.storage import StorageError
from tests.integration.seeding import Seeder, job_row
from tests.integration.test_batches import REQUEST


@dataclass
class Shop:
    """A catalogue's folder, its results beside it."""

    engine: Engine
    folder: Path

    def fill(self, header: Sequence[str], *rows: Sequence[str]) -> Batch:
        """Ingest a CSV of these rows."""
        with (self.folder / "catalogue.csv").open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([header, *rows])
        request = REQUEST.__class__(
            REQUEST.asked, str(self.folder / "results"), REQUEST.checkpoint, REQUEST.numerics, REQUEST.priority
        )
        catalogue = open_catalogue(self.folder / "catalogue.csv", Settings())
        return ingest(self.engine, create_batch(self.engine, catalogue, request), catalogue, request)

    def finish(self, batch: Batch) -> None:
        """Let every pending job succeed."""
        seed = Seeder(self.engine)
        for recipe in seed.do(queries.dispatch, batch.id, 10_000):
            unit = seed.claim(Group(Stage.ENCODE, recipe, "", batch.revision), 10_000, numerics=batch.numerics)
            ends = [Finished(job.id, 0, 0.5, f"{batch.results_uri}/{job.custom_id}.png", "5" * 64) for job in unit]
            seed.do(queries.succeed, Stage.ENCODE, ends)

    def manifest(self, batch: Batch) -> tuple[list[dict[str, Any]], list[str], list[dict[str, str]]]:
        """Write it and read it again: the lines of JSONL, the header and the rows of CSV."""
        assert write_manifest(self.engine, batch, Settings()).endswith("/manifest.jsonl")
        folder = Path(batch.results_uri)
        with (folder / "manifest.jsonl").open(encoding="utf-8") as stream:
            lines = [json.loads(line) for line in stream]
        with (folder / "manifest.csv").open(newline="", encoding="utf-8") as stream:
            table = csv.DictReader(stream)
            rows = list(table)
        return lines, list(table.fieldnames or ()), rows


@pytest.fixture
def shop(engine: Engine, tmp_path: Path) -> Shop:
    return Shop(engine, tmp_path)


def test_it_mirrors_the_catalogue_and_adds_what_became_of_each_row(shop: Shop) -> None:
    header = ["sku", "image", "prompt", "note"]
    batch = shop.fill(header, ["1", "a.jpg", "press it", "x"], ["2", "", "relight", "y"], ["3", "c.jpg", "", ""])
    shop.finish(batch)
    lines, columns, rows = shop.manifest(batch)
    assert columns[:5] == ["custom_id", *header] and len(columns) == len(set(columns))
    assert [row["sku"] for row in rows] == ["1", "2", "3"] == [line["given"]["sku"] for line in lines]
    assert [row["status"] for row in rows] == ["succeeded", "failed", "succeeded"] == [line["status"] for line in lines]
    assert [row["line"] for row in rows] == ["2", "3", "4"] and [row["note"] for row in rows] == ["x", "y", ""]
    assert (rows[0]["prompt"], lines[0]["given"]["prompt"]) == ("press it", "press it")
    good, bad = lines[0], lines[1]
    assert good["result"] == rows[0]["result"] == f"{batch.results_uri}/a.png" and good["sha256"] == "5" * 64
    assert (good["seed"], good["attempts"], good["seconds"], good["revision"]) == (0, 1, 0.5, batch.revision)
    assert bad["code"] == rows[1]["code"] == "missing_image" and "line 3, column image" in bad["message"]
    assert bad["result"] is None and rows[1]["result"] == ""


def test_a_bad_row_keeps_all_its_cells(shop: Shop) -> None:
    # Or a shop could not correct the manifest and submit it again.
    header = ["image", "custom_id", "prompt", "negative_prompt", "seed", "steps", "note"]
    cells = ["a.jpg", "one", "press it", "blurry", "12", "none", "hm"]
    _, _, rows = shop.manifest(shop.fill(header, cells, [*cells[:4], "many", "4", "hm"]))
    assert [rows[0][name] for name in header] == cells
    assert [rows[1][name] for name in header] == [*cells[:4], "many", "4", "hm"]


@pytest.mark.parametrize("preset", ["flat-lay", ""])
def test_a_good_row_keeps_all_its_cells(shop: Shop, preset: str) -> None:
    header = ["image", "preset", "prompt", "negative_prompt", "seed", "guidance", "width", "height", "priority"]
    cells = ["a.jpg", preset, "" if preset else "press it", "blurry", "12", "2.50", "128", "128", "3"]
    batch = shop.fill(header, cells)
    shop.finish(batch)
    _, _, rows = shop.manifest(batch)
    assert [rows[0][name] for name in header] == cells


def test_columns_named_like_outcomes_are_kept_apart(shop: Shop) -> None:
    header = ["image", "status", "result", "message", "line", "sha256", "seed"]
    batch = shop.fill(header, ["a.jpg", "on sale", "good", "hello", "L1", "abc", "7"])
    shop.finish(batch)
    _, columns, rows = shop.manifest(batch)
    assert [rows[0][name] for name in header] == ["a.jpg", "on sale", "good", "hello", "L1", "abc", "7"]
    assert rows[0]["kontext_status"] == "succeeded" and rows[0]["kontext_result"].endswith("/a.png")
    assert rows[0]["kontext_line"] == "2" and len(columns) == len(set(columns))


@pytest.mark.parametrize(
    "clash", ["kontext_status", "custom_id", "take", "recipe", "canvas", "attempt", "stage", "state"]
)
def test_a_clash_of_clashes_stays_readable(shop: Shop, clash: str) -> None:
    batch = shop.fill(["image", "status", clash], ["a.jpg", "on sale", "mine"])
    shop.finish(batch)
    _, columns, rows = shop.manifest(batch)
    assert len(columns) == len(set(columns))
    assert (rows[0]["status"], rows[0][clash]) == ("on sale", "mine")
    assert "succeeded" in rows[0].values()


def test_any_cell_comes_back_as_it_was(shop: Shop) -> None:
    cells = ['say "hi", ok', "two\nlines", "数字 \u202ertl 🧥", "=1+1", "\u2028", " padded "]
    batch = shop.fill(["image", "note"], *[[f"{n}.jpg", cell] for n, cell in enumerate(cells)])
    shop.finish(batch)
    lines, _, rows = shop.manifest(batch)
    assert [row["note"] for row in rows] == cells == [line["given"]["note"] for line in lines]


def test_one_cell_that_is_no_text_keeps_no_batch_from_its_manifest(seed: Seeder, tmp_path: Path) -> None:
    batch = seed.batch(columns='["image", "note"]', results_uri=str(tmp_path / "results"))
    rows = [job_row("b", line, given=json.dumps({"note": note})) for line, note in enumerate(("\ud83d", "fine"), 1)]
    assert seed.do(insert_jobs, rows) == []
    lines, _, table = Shop(seed.engine, tmp_path).manifest(batch)
    assert [line["given"]["note"] for line in lines] == ["?", "fine"] == [row["note"] for row in table]


def test_it_streams_at_any_number_of_rows(seed: Seeder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = seed.batch(results_uri=str(tmp_path))
    count = 5_000
    assert seed.do(insert_jobs, [job_row("b", line) for line in range(1, count + 1)]) == []
    pages = []
    read = queries.stream_jobs

    def count_pages(*given: Any, **named: Any) -> Any:
        for row in read(*given, **named):
            pages.append(row["line"])
            yield row

    monkeypatch.setattr(queries, "stream_jobs", count_pages)
    lines, table = tmp_path / "lines", tmp_path / "table"
    write_files(seed.engine, batch, lines, table)
    with lines.open() as stream:
        assert [json.loads(line)["line"] for line in stream] == list(range(1, count + 1)) == pages
    with table.open() as stream:
        assert sum(1 for _ in csv.reader(stream)) == count + 1


def test_jobs_are_described_as_they_stand(shop: Shop) -> None:
    seed = Seeder(shop.engine)
    batch = shop.fill(["image"], ["a.jpg"], ["b.jpg"], ["c.jpg"])
    recipe = next(iter(seed.do(queries.dispatch, batch.id, 2)))
    (job,) = seed.claim(Group(Stage.ENCODE, recipe, "", batch.revision), 1, numerics=batch.numerics)
    seed.do(queries.retry, Stage.ENCODE, [Retried(job.id, 0, 0.1, "unavailable", "away", 60)])
    first, second, third = describe_jobs(shop.engine, batch)
    assert (first["state"], first["stage"], first["attempt"], first["code"]) == ("queued", "encode", 1, "unavailable")
    assert (second["state"], second["stage"], second["attempt"]) == ("queued", "encode", 0)
    assert (third["state"], third["stage"], third["seconds"], third["result"]) == ("pending", None, None, None)
    needed = {"custom_id", "line", "take", "state", "stage", "attempt", "code", "message", "result", "sha256", "seed"}
    assert needed | {"seconds"} <= set(first)
    assert [job["custom_id"] for job in describe_jobs(shop.engine, batch, [JobState.PENDING])] == ["c"]


def test_it_is_written_anew_as_jobs_change(shop: Shop) -> None:
    batch = shop.fill(["image"], ["a.jpg"])
    assert shop.manifest(batch)[0][0]["status"] == "pending"
    shop.finish(batch)
    assert shop.manifest(batch)[0][0]["status"] == "succeeded"


def test_a_location_that_cannot_be_written_is_told(shop: Shop) -> None:
    batch = shop.fill(["image"], ["a.jpg"])
    (shop.folder / "results").write_text("a file in the way")
    with pytest.raises(StorageError):
        manifest.write_manifest(shop.engine, batch, Settings())
