"""The dispatcher's window: bounded in jobs and bytes, urgent batches first, equals level, nobody starved."""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from orchestrator import closing
from orchestrator.dispatcher import Dispatcher, share_window
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.bulk import insert_jobs
from orchestrator.state.messages import Bell
from orchestrator.state.queries import Batch, Failed, Group, Retried
from orchestrator.state.transitions import BatchStatus, Stage
from orchestrator.storage import StorageError
from tests.integration.seeding import NUMERICS, RECIPE, REVISION, Seeder, job_row

SETTINGS = Settings(window_jobs=64, unit_size=8)
ENCODE = Group(Stage.ENCODE, RECIPE, "", REVISION)


def batch(name: str, priority: int = 0, handoff_bytes: int = 1000) -> Batch:
    return Batch(
        name, "request", "catalogue", "root", ("image",), {}, BatchStatus.RUNNING, None, priority, "checkpoint",
        REVISION, NUMERICS, handoff_bytes, "/results", 10, 10, 0.0, 0.0, None,
    )  # fmt: skip


def shares(batches: Sequence[Batch], in_flight: Mapping[str, int], settings: Settings = SETTINGS) -> dict[str, int]:
    return {each.id: share for each, share in share_window(batches, in_flight, settings)}


class TestSharing:
    def test_a_lone_batch_fills_the_window(self) -> None:
        assert shares([batch("a")], {}) == {"a": 64}
        assert shares([batch("a")], {"a": 40}) == {"a": 24}
        assert shares([batch("a")], {"a": 64}) == {} == shares([], {})

    def test_equals_are_filled_to_one_level(self) -> None:
        assert shares([batch("a"), batch("b")], {"a": 48}) == {"b": 16}
        assert shares([batch("a"), batch("b")], {}) == {"a": 32, "b": 32}

    def test_the_urgent_go_first(self) -> None:
        assert shares([batch("a"), batch("b", priority=1)], {"a": 32}) == {"b": 32}

    def test_bytes_bound_the_window_too(self) -> None:
        settings = Settings(window_jobs=1000, window_bytes=1 << 20, unit_size=1)
        assert shares([batch("a", handoff_bytes=1 << 16)], {}, settings) == {"a": 16}

    def test_bytes_in_flight_are_counted_batch_by_batch(self) -> None:
        settings = Settings(window_jobs=1000, window_bytes=1 << 20, unit_size=1)
        large, small = batch("large", handoff_bytes=1 << 18), batch("small", handoff_bytes=1 << 10)
        assert shares([large, small], {"large": 4}, settings) == {}
        paused = replace(large, status=BatchStatus.PAUSED)
        assert shares([paused, small], {"large": 3}, settings) == {"small": 256}

    def test_one_unit_always_fits(self) -> None:
        assert shares([batch("a", handoff_bytes=1 << 40)], {}) == {"a": 8}

    def test_a_full_window_is_not_refilled_job_by_job(self) -> None:
        assert shares([batch("a")], {"a": 60}) == {}
        assert shares([batch("a")], {"a": 56}) == {}
        assert shares([batch("a")], {"a": 48}) == {"a": 16}

    @given(
        st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 80), st.integers(1, 1 << 22)), max_size=6),
        st.integers(1, 200),
        st.integers(1, 20),
    )
    def test_the_window_is_never_overfilled(self, given: list[tuple[int, int, int]], jobs: int, unit_size: int) -> None:
        batches = [batch(f"b{i}", priority, size) for i, (priority, _, size) in enumerate(given)]
        in_flight = {f"b{i}": count for i, (_, count, _) in enumerate(given)}
        settings = Settings(window_jobs=jobs, unit_size=unit_size)
        told = shares(batches, in_flight, settings)
        assert all(share > 0 for share in told.values())
        if told:
            assert sum(told.values()) + sum(in_flight.values()) <= max(unit_size, jobs)


@pytest.fixture
def rung(engine: Engine) -> list[Bell]:
    return []


@pytest.fixture
def tick(engine: Engine, rung: list[Bell]) -> Dispatcher:
    return Dispatcher(engine, SETTINGS, rung.extend)


class TestTicks:
    def test_each_unit_gets_one_bell(self, seed: Seeder, tick: Dispatcher, rung: list[Bell]) -> None:
        seed.batch("a", jobs=0)
        rows = [job_row("a", line, recipe="odd" if line < 10 else "even") for line in range(1, 27)]
        assert seed.do(insert_jobs, rows) == []
        assert tick.tick() == 26
        bells = Counter(bell.recipe_id for bell in rung)
        assert bells == {"odd": 2, "even": 3}
        assert {(bell.stage, bell.revision, bell.canvas) for bell in rung} == {(Stage.ENCODE, REVISION, "")}

    def test_a_batch_with_nothing_left_to_queue_leaves_its_room_to_others(self, seed: Seeder, tick: Dispatcher) -> None:
        # One straggler of an urgent batch would keep the whole fleet idle.
        group = seed.queued(1, "urgent", priority=5, recipe="u")
        (job,) = seed.claim(group)
        seed.do(queries.retry, Stage.ENCODE, [Retried(job.id, 0, 0.1, "unavailable", "away", 0)])
        seed.batch("calm", jobs=100)
        assert tick.tick() == 63

    def test_jobs_that_wait_for_their_next_try_keep_no_other_batch_waiting(
        self, seed: Seeder, tick: Dispatcher
    ) -> None:
        """A server that only one batch needs is away, for as long as three quarters of an hour."""
        seed.batch("away", jobs=300, recipe="away")
        assert tick.tick() == 64
        ends = [Retried(job.id, 0, 0.1, "unavailable", "away", 300) for job in seed.claim(ENCODE)]
        assert len(seed.do(queries.retry, Stage.ENCODE, ends)) == 64
        assert tick.tick() == 0, "it has its window already"
        seed.batch("other", jobs=100)
        assert tick.tick() == 64
        assert seed.do(queries.in_flight) == {"away": 64, "other": 64}

    def test_equals_with_nothing_left_leave_their_share_to_others(self, seed: Seeder, tick: Dispatcher) -> None:
        seed.batch("small", jobs=2)
        seed.batch("large", jobs=100)
        assert tick.tick() == 64
        assert tick.tick() == 0

    def test_a_paused_batch_does_not_keep_others_waiting(self, seed: Seeder, tick: Dispatcher) -> None:
        seed.queued(64, "paused", recipe="p")
        seed.do(queries.move_batch, "paused", BatchStatus.PAUSED)
        seed.batch("other", jobs=100)
        assert tick.tick() == 64

    def test_an_ended_batch_is_closed_with_its_manifest(self, seed: Seeder, tick: Dispatcher, tmp_path: Path) -> None:
        seed.batch("a", jobs=1, results_uri=str(tmp_path / "results"))
        tick.tick()
        (job,) = seed.claim(ENCODE)
        tick.tick()
        tick.wait()
        assert seed.do(queries.read_batch, "a").status == BatchStatus.RUNNING
        seed.do(queries.fail, Stage.ENCODE, [Failed(job.id, 0, 0.1, "code", "message")])
        tick.tick()
        tick.wait()
        assert seed.do(queries.read_batch, "a").status == BatchStatus.COMPLETED
        line = json.loads((tmp_path / "results" / "manifest.jsonl").read_text())
        assert (line["custom_id"], line["status"]) == ("photo-1", "failed")

    def test_a_batch_of_bad_rows_only_is_closed_too(self, seed: Seeder, tick: Dispatcher, tmp_path: Path) -> None:
        seed.batch("a", results_uri=str(tmp_path / "results"))
        assert seed.do(insert_jobs, [job_row("a", 1, recipe=None, state="failed", code="bad_seed")]) == []
        tick.tick()
        tick.wait()
        assert seed.do(queries.read_batch, "a").status == BatchStatus.COMPLETED

    @pytest.mark.parametrize("error", [StorageError("away"), OSError("disk full")])
    def test_a_manifest_that_cannot_be_written_stops_no_other_batch(
        self, seed: Seeder, tick: Dispatcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        for name in ("a", "b"):
            seed.batch(name, results_uri=str(tmp_path / name))
        write = closing.write_manifest

        def refuse(engine: Engine, batch: Batch, settings: Settings) -> str:
            if batch.id == "a":
                raise error
            return write(engine, batch, settings)

        monkeypatch.setattr(closing, "write_manifest", refuse)
        tick.tick()
        tick.wait()
        assert seed.do(queries.read_batch, "a").status == BatchStatus.RUNNING
        assert seed.do(queries.read_batch, "b").status == BatchStatus.COMPLETED
        monkeypatch.undo()
        later_s = time.monotonic() + 3
        monkeypatch.setattr(closing, "time", SimpleNamespace(monotonic=lambda: later_s))
        tick.tick()
        tick.wait()
        assert seed.do(queries.read_batch, "a").status == BatchStatus.COMPLETED

    def test_however_many_manifests_cannot_be_written_the_others_are(
        self, seed: Seeder, tick: Dispatcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        for number in range(closing.WRITERS):
            seed.batch(f"bad-{number}", results_uri=str(tmp_path / "file" / "results"), priority=1)
        seed.batch("good", results_uri=str(tmp_path / "good"))
        tried: list[str] = []
        write = closing.write_manifest
        monkeypatch.setattr(closing, "write_manifest", lambda *given: tried.append(given[1].id) or write(*given))
        now_s = time.monotonic()
        monkeypatch.setattr(closing, "time", SimpleNamespace(monotonic=lambda: now_s))
        tick.tick()
        tick.wait()
        for at_s, tries in ((0.0, 5), (1.9, 5), (2.1, 9), (4.1, 9), (6.2, 13), (14.3, 17)):
            monkeypatch.setattr(closing, "time", SimpleNamespace(monotonic=lambda at_s=at_s: now_s + at_s))
            tick.tick()
            tick.wait()
            assert len(tried) == tries
        assert seed.do(queries.read_batch, "good").status == BatchStatus.COMPLETED

    def test_bells_ring_after_the_commit(self, seed: Seeder, engine: Engine) -> None:
        seen: list[Any] = []
        dispatch = Dispatcher(engine, SETTINGS, lambda bells: seen.append((len(bells), seed.claim(ENCODE))))
        seed.batch("a", jobs=3)
        dispatch.tick()
        assert [(bells, len(unit)) for bells, unit in seen] == [(1, 3)]
