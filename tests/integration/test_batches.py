"""Catalogues become jobs: good rows and bad, once each whatever is killed, on SQLite and PostgreSQL."""

import csv
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text

from kontext_model.revision import CheckpointRef, Defaults
from orchestrator import batches
from orchestrator.batches import BatchError, Request, create_batch, dry_run, find_unfinished, ingest, read_batch
from orchestrator.catalogs import Catalogue, CatalogueError, Row, open_catalogue
from orchestrator.row_reader import RowReader
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import reading
from orchestrator.state.queries import Batch
from orchestrator.state.tables import batches as batch_table
from orchestrator.state.tables import recipes
from orchestrator.state.transitions import BatchStatus
from tests.integration.seeding import Seeder

CHECKPOINT = CheckpointRef("checkpoint", None, "c" * 64, Defaults(area_px=65_536, steps=8, guidance=2.5))
REQUEST = Request({"prompt": "flat lay"}, "/results", CHECKPOINT, "float32/v1")
Write = Callable[..., Catalogue]


@pytest.fixture
def write(tmp_path: Path, settings: Settings) -> Write:
    """Writes rows below a header as a CSV and opens it."""

    def write(header: str, rows: Sequence[Sequence[str]], name: str = "catalogue.csv") -> Catalogue:
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([header.split(","), *rows])
        return open_catalogue(tmp_path / name, settings)

    return write


def fill(engine: Engine, catalogue: Catalogue, request: Request = REQUEST) -> Batch:
    return ingest(engine, create_batch(engine, catalogue, request), catalogue, request)


class Rows:
    """A catalogue of rows given as they are, also such as no file can hold."""

    def __init__(self, *values: dict[str, str | None]) -> None:
        self.uri, self.image_root, self.columns, self.warnings = "/given.csv", "/", tuple(values[0]), ()
        self._rows = [Row(line, each, None) for line, each in enumerate(values, start=2)]

    def rows(self, after_line: int = 0) -> Any:
        return (row for row in self._rows if row.line > after_line)

    def is_empty(self) -> bool:
        return not self._rows


class TestRows:
    def test_good_rows_wait_and_bad_rows_say_what_is_wrong_and_where(self, seed: Seeder, write: Write) -> None:
        catalogue = write(
            "image,custom_id,seed,steps,prompt,note",
            [
                ["a/one.jpg", "", "7", "12", "press it", "kept"],
                ["a/two.jpg", "two", "", "", "", ""],
                ["", "three", "", "", "", ""],
                ["four.jpg", "", "many", "", "", ""],
                ["five.jpg", "", "", "0", "", ""],
                ["six.jpg", "", "", "", "", "", "surplus"],
            ],
        )
        batch = fill(seed.engine, catalogue)
        assert (batch.status, batch.total, batch.ingested_line) == (BatchStatus.RUNNING, 6, 7)
        rows = seed.rows(batch.id)
        assert [row["state"] for row in rows] == ["pending"] * 2 + ["failed"] * 4
        assert [row["line"] for row in rows] == [2, 3, 4, 5, 6, 7]
        assert [row["custom_id"] for row in rows] == ["a/one", "two", "three", "four", "five", "six"]
        assert (rows[0]["image"], rows[0]["seed"], rows[1]["seed"]) == ("a/one.jpg", 7, 0)
        assert json.loads(rows[0]["given"])["note"] == "kept"
        assert [row["code"] for row in rows[2:5]] == ["missing_image", "bad_seed", "bad_steps"]
        for row, column in zip(rows[2:5], ("image", "seed", "steps"), strict=True):
            assert f"catalogue.csv, line {row['line']}, column {column}" in row["message"]
        assert "catalogue.csv, line 7" in rows[5]["message"]
        assert all(row["ended_at"] and row["recipe_id"] is None for row in rows[2:])
        with reading(seed.engine).connect() as connection:
            recipe = queries.read_recipe(connection, rows[0]["recipe_id"])
        assert recipe is not None and (recipe["prompt"], recipe["steps"], recipe["guidance"]) == ("press it", 12, 2.5)

    def test_derived_doubles_get_their_line_and_explicit_doubles_fail(self, seed: Seeder, write: Write) -> None:
        catalogue = write(
            "custom_id,image",
            [
                ["", "a.jpg"],
                ["", "a.png"],
                ["x", "b.jpg"],
                ["x", "c.jpg"],
                ["", "x.jpg"],
                ["a", "d.jpg"],
                ["", "a.jpg"],
            ],
        )
        rows = seed.rows(fill(seed.engine, catalogue).id)
        assert [row["custom_id"] for row in rows] == ["a", "a-3", "x", "x", "x-6", "a", "a-8"]
        assert [row["line"] for row in rows if row["state"] == "failed"] == [5, 7]
        assert rows[3]["code"] == "duplicate_custom_id"
        assert "catalogue.csv, line 5, column custom_id: 'x'" in rows[3]["message"]

    def test_a_derived_double_may_meet_an_explicit_id(self, seed: Seeder, write: Write) -> None:
        catalogue = write("custom_id,image", [["a-3", "b.jpg"], ["", "a.jpg"], ["", "a.jpg"], ["a-4", "c.jpg"]])
        rows = seed.rows(fill(seed.engine, catalogue).id)
        pending = [row["custom_id"] for row in rows if row["state"] == "pending"]
        assert len(pending) == len(set(pending)) and len(rows) == 4

    def test_doubles_across_chunks_are_found_too(
        self, seed: Seeder, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(batches.CHUNK_ROWS, seed.engine.dialect.name, 2)
        catalogue = write(
            "custom_id,image", [["x", "1.jpg"], ["", "2.jpg"], ["x", "3.jpg"], ["", "2.jpg"], ["y", "4.jpg"]]
        )
        rows = seed.rows(fill(seed.engine, catalogue).id)
        assert [(row["custom_id"], row["state"]) for row in rows] == [
            ("x", "pending"), ("2", "pending"), ("x", "failed"), ("2-5", "pending"), ("y", "pending"),
        ]  # fmt: skip

    def test_a_catalogue_of_one_photo_takes_no_longer_than_others(self) -> None:
        # A thousand prompts for one photo: every id but one is a double.
        catalogue = Rows(*[{"image": "same.jpg"}] * 3_000)
        comparisons = 0

        class Counted(int):
            def __eq__(self, other: object) -> bool:
                nonlocal comparisons
                comparisons += 1
                return int(self) == other

            __hash__ = int.__hash__

        rows = [row._replace(line=Counted(row.line)) for row in catalogue.rows()]
        reader = RowReader("b", catalogue, CHECKPOINT.defaults, REQUEST.asked)
        placed = []

        def insert(jobs: Sequence[Any]) -> list[Any]:
            placed.append(len(jobs))
            return list(jobs) if len(placed) == 1 else []

        reader.place(rows, [reader.read(row) for row in rows], insert)
        assert placed == [3_000, 3_000, 0] and comparisons <= 3 * 3_000

    def test_a_long_double_stays_as_short_as_an_id_must_be(self, seed: Seeder) -> None:
        image: dict[str, str | None] = {"image": "x" * 300 + ".jpg"}
        rows = seed.rows(fill(seed.engine, Rows(image, image)).id)
        assert [len(row["custom_id"]) for row in rows] == [256, 256]
        assert rows[1]["custom_id"].endswith("x-3")

    @pytest.mark.parametrize(
        "image",
        ["http://[", "https://℀.com/a.jpg", "s3://bucket/[a].jpg", "💃" * 300 + ".jpg", ".jpg", "a/", "?", "%00", "-1"],
    )
    def test_any_image_is_a_job_or_a_bad_row(self, seed: Seeder, image: str) -> None:
        batch = fill(seed.engine, Rows({"image": image}, {"image": "good.jpg"}))
        first, second = seed.rows(batch.id)
        assert second["state"] == "pending" and first["state"] in ("pending", "failed")
        assert first["custom_id"] and len(first["custom_id"]) <= 256

    @pytest.mark.parametrize("column", ["image", "custom_id", "prompt", "note", "preset", "seed"])
    def test_any_text_is_stored_or_a_bad_row(self, seed: Seeder, column: str) -> None:
        cells = (
            "nul\x00l", "half \ud83d", "\udcff", "x" * 100_000, "🧥👗", "\u202eجاكيت", "a\r\nb\t\x7f\x1b[31m",
            "'; DROP TABLE jobs;--", "{}", "\\N", "\\.",
        )  # fmt: skip
        catalogue = Rows(*[{"image": f"{number}.jpg", column: cell} for number, cell in enumerate(cells)])
        rows = seed.rows(fill(seed.engine, catalogue).id)
        assert len(rows) == len(cells)
        for row, cell in zip(rows, cells, strict=True):
            if row["state"] == "failed":
                assert f"column {column}" in row["message"]
            elif column == "note":
                assert json.loads(row["given"])["note"] == cell
            elif column in ("image", "custom_id"):
                assert row[column] == cell
        harmless = sum(row["state"] == "pending" for row in rows)
        assert harmless >= (0 if column in ("preset", "seed") else 7)


class TestResuming:
    def test_a_kill_between_chunks_loses_and_doubles_nothing(
        self, seed: Seeder, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(batches.CHUNK_ROWS, seed.engine.dialect.name, 7)
        catalogue = write("image", [[f"{number % 20}.jpg"] for number in range(50)])
        batch = create_batch(seed.engine, catalogue, REQUEST)
        stored = []
        for deaths in (7, 21, 28):

            def die(rows: int, deaths: int = deaths) -> None:
                stored.append(rows)
                if rows >= deaths:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                ingest(seed.engine, read_batch(seed.engine, batch.id), catalogue, REQUEST, die)
            assert len(seed.rows(batch.id)) == deaths
            assert read_batch(seed.engine, batch.id).status == BatchStatus.INGESTING
        found = find_unfinished(seed.engine, catalogue, REQUEST)
        assert found is not None and found.id == batch.id
        done = ingest(seed.engine, found, catalogue, REQUEST)
        assert (done.total, done.status) == (50, BatchStatus.RUNNING)
        assert [row["line"] for row in seed.rows(batch.id)] == list(range(2, 52))
        assert len({row["custom_id"] for row in seed.rows(batch.id)}) == 50

    def test_a_kill_inside_a_chunk_leaves_nothing_of_it(
        self, seed: Seeder, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        catalogue = write("image", [["a.jpg"], ["b.jpg"]])
        batch = create_batch(seed.engine, catalogue, REQUEST)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(queries, "note_ingested", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            ingest(seed.engine, batch, catalogue, REQUEST)
        assert seed.rows(batch.id) == []
        assert ingest(seed.engine, batch, catalogue, REQUEST).total == 2

    @pytest.mark.parametrize("late", [True, False], ids=["from the start", "from where it stands"])
    def test_of_two_processes_that_fill_a_batch_one_gives_way(
        self, seed: Seeder, write: Write, monkeypatch: pytest.MonkeyPatch, late: bool
    ) -> None:
        monkeypatch.setitem(batches.CHUNK_ROWS, seed.engine.dialect.name, 10)
        catalogue = write("image", [[f"{number}.jpg"] for number in range(35)])
        batch = create_batch(seed.engine, catalogue, REQUEST)
        gave_way = []

        def fill_too(rows: int) -> None:
            if rows == 10:
                seen = batch if late else read_batch(seed.engine, batch.id)
                try:
                    ingest(seed.engine, seen, catalogue, REQUEST)
                except BatchError as error:
                    gave_way.append(str(error))

        try:
            ingest(seed.engine, batch, catalogue, REQUEST, fill_too)
        except BatchError as error:
            gave_way.append(str(error))
        assert len(gave_way) == 1 and f"kontext show {batch.id}" in gave_way[0]
        assert [row["line"] for row in seed.rows(batch.id)] == list(range(2, 37))
        assert (read_batch(seed.engine, batch.id).total, read_batch(seed.engine, batch.id).status) == (35, "running")

    def test_two_that_fill_a_batch_at_once_double_nothing(self, seed: Seeder, write: Write) -> None:
        catalogue = write("image", [[f"{number}.jpg"] for number in range(60)])
        batch = create_batch(seed.engine, catalogue, REQUEST)
        barrier = threading.Barrier(2)

        def work(_: int) -> bool:
            barrier.wait()
            try:
                ingest(seed.engine, batch, catalogue, REQUEST)
            except BatchError:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(work, range(2))) == [False, True]
        assert [row["line"] for row in seed.rows(batch.id)] == list(range(2, 62))
        assert read_batch(seed.engine, batch.id).total == 60

    def test_a_catalogue_that_breaks_off_fails_its_batch_and_says_why(
        self, seed: Seeder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(batches.CHUNK_ROWS, seed.engine.dialect.name, 2)
        catalogue = Rows(*[{"image": f"{number}.jpg"} for number in range(5)])
        batch = create_batch(seed.engine, catalogue, REQUEST)

        def rows(after_line: int = 0) -> Any:
            yield from catalogue._rows[:3]
            raise CatalogueError("given.csv, line 5: cannot be read")

        monkeypatch.setattr(catalogue, "rows", rows)
        with pytest.raises(CatalogueError, match="line 5"):
            ingest(seed.engine, batch, catalogue, REQUEST)
        failed = read_batch(seed.engine, batch.id)
        assert (failed.status, failed.reason) == (BatchStatus.FAILED, "given.csv, line 5: cannot be read")
        assert failed.ended_at is not None and failed.total == len(seed.rows(batch.id)) == 2

    def test_an_ended_batch_takes_no_more_rows(self, seed: Seeder, write: Write) -> None:
        catalogue = write("image", [["a.jpg"]])
        batch = create_batch(seed.engine, catalogue, REQUEST)
        seed.do(queries.move_batch, batch.id, BatchStatus.FAILED)
        with pytest.raises(BatchError, match=f"kontext show {batch.id}"):
            ingest(seed.engine, batch, catalogue, REQUEST)
        assert seed.rows(batch.id) == []


class TestRequests:
    def test_an_empty_catalogue_makes_no_batch(self, seed: Seeder, write: Write) -> None:
        with pytest.raises(CatalogueError, match="no rows"):
            create_batch(seed.engine, write("image", []), REQUEST)
        with reading(seed.engine).connect() as connection:
            assert connection.execute(select(func.count()).select_from(batch_table)).scalar_one() == 0

    def test_another_catalogue_option_or_checkpoint_is_another_request(self, seed: Seeder, write: Write) -> None:
        catalogue = write("image", [["a.jpg"]])
        batch = create_batch(seed.engine, catalogue, REQUEST)
        assert find_unfinished(seed.engine, write("image", [["a.jpg"]], "other.csv"), REQUEST) is None
        for other in (
            replace(REQUEST, asked={"prompt": "another"}),
            replace(REQUEST, results_uri="/elsewhere"),
            replace(REQUEST, numerics="bfloat16/v1"),
            replace(REQUEST, priority=1),
            replace(REQUEST, checkpoint=replace(CHECKPOINT, revision="d" * 64)),
        ):
            assert find_unfinished(seed.engine, catalogue, other) is None
        found = find_unfinished(seed.engine, catalogue, REQUEST)
        assert found is not None and found.id == batch.id
        changed = write("image", [["a.jpg"], ["b.jpg"]])
        assert find_unfinished(seed.engine, changed, REQUEST) is None

    def test_a_folder_whose_pictures_change_is_another_request(self, seed: Seeder, tmp_path: Path) -> None:
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "a.jpg").write_bytes(b"a")
        catalogue = open_catalogue(tmp_path / "photos", Settings())
        create_batch(seed.engine, catalogue, REQUEST)
        assert find_unfinished(seed.engine, catalogue, REQUEST) is not None
        (tmp_path / "photos" / "b.jpg").write_bytes(b"b")
        assert find_unfinished(seed.engine, open_catalogue(tmp_path / "photos", Settings()), REQUEST) is None

    def test_a_batch_is_pinned_to_its_checkpoint(self, seed: Seeder, write: Write) -> None:
        batch = create_batch(seed.engine, write("image", [["a.jpg"]]), REQUEST)
        assert (batch.checkpoint, batch.revision, batch.numerics) == ("checkpoint", "c" * 64, "float32/v1")
        assert batch.results_uri == f"/results/{batch.id}"
        with pytest.raises(BatchError, match="no batch 'none'"):
            read_batch(seed.engine, "none")

    def test_the_window_allows_for_the_largest_canvas_a_row_asks(self, seed: Seeder) -> None:
        plain = fill(seed.engine, Rows({"image": "a.jpg"})).handoff_bytes
        small = fill(seed.engine, Rows({"image": "a.jpg", "width": "64", "height": "64"})).handoff_bytes
        large = Rows({"image": "a.jpg"}, {"image": "b.jpg", "width": "4096", "height": "4096"})
        whole = replace(REQUEST, asked={**REQUEST.asked, "width": 4096, "height": 4096})
        assert small == plain < 1_000_000
        assert fill(seed.engine, large).handoff_bytes == fill(seed.engine, Rows({"image": "a"}), whole).handoff_bytes
        assert fill(seed.engine, large).handoff_bytes > 2 * 256 * 256 * 64 * 4

    def test_a_catalogue_in_a_folder_with_any_name_makes_a_batch(self, seed: Seeder, tmp_path: Path) -> None:
        folder = tmp_path / "odd \udcff folder"
        folder.mkdir()
        (folder / "catalogue.csv").write_text("image\na.jpg\n")
        with pytest.raises((CatalogueError, BatchError), match="name"):
            fill(seed.engine, open_catalogue(folder / "catalogue.csv", Settings()))


class TestDryRun:
    def test_it_agrees_with_ingestion_and_writes_nothing(self, seed: Seeder, write: Write) -> None:
        catalogue = write(
            "image,custom_id,steps,preset",
            [
                ["a.jpg", "", "", ""], ["a.jpg", "", "", ""], ["b.jpg", "a-3", "", ""], ["c.jpg", "c", "x", ""],
                ["d.jpg", "c", "", "flat-lay"], ["e.jpg", "c", "", ""], ["", "", "", ""], ["f.jpg", "", "", "nonsense"],
                ["g.jpg", "a", "4", ""], ["", "", "", "", ""],
            ],
        )  # fmt: skip
        told = dry_run(catalogue, REQUEST.asked, CHECKPOINT.defaults)
        with reading(seed.engine).connect() as connection:
            assert connection.execute(text("SELECT count(*) FROM jobs")).scalar_one() == 0
        rows = seed.rows(fill(seed.engine, catalogue).id)
        failed = [row for row in rows if row["state"] == "failed"]
        assert told.rows == len(rows) and told.bad == len(failed)
        assert told.errors == [{name: row[name] for name in ("custom_id", "line", "code", "message")} for row in failed]
        with reading(seed.engine).connect() as connection:
            assert told.recipes == connection.execute(select(func.count()).select_from(recipes)).scalar_one()

    def test_it_lists_the_first_errors_and_counts_all(self, write: Write) -> None:
        told = dry_run(write("image,seed", [["a.jpg", "x"]] * 30), REQUEST.asked, CHECKPOINT.defaults, most_errors=5)
        assert (told.rows, told.bad, len(told.errors)) == (30, 30, 5)
        assert [error["line"] for error in told.errors] == [2, 3, 4, 5, 6]
