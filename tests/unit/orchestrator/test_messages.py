"""Bells: what comes over the wire is read as what was sent, and nothing else is believed."""

from dataclasses import replace
from typing import Any

import pytest
from celery import Celery
from celery.app.defaults import SETTING_KEYS

from orchestrator.state.messages import TASK, Bell, bells_needed, broker_options, queue_names, ring
from orchestrator.state.transitions import Stage
from tests.waiting import PATIENCE_S

BELL = Bell(Stage.SAMPLE, "0123456789abcdef", "recipe", "256x256")


def test_a_bell_comes_back_from_the_wire_as_it_was_sent() -> None:
    assert Bell.parse(BELL.kwargs()) == BELL
    assert Bell.parse({**BELL.kwargs(), "added_later": 1}) == BELL
    assert isinstance(Bell.parse(BELL.kwargs()).stage, Stage)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"stage": "encode"},
        {**BELL.kwargs(), "stage": "paint"},
        {**BELL.kwargs(), "stage": None},
        {**BELL.kwargs(), "recipe_id": 7},
        {**BELL.kwargs(), "canvas": ["256x256"]},
        {**BELL.kwargs(), "revision": "x" * 201},
        None,
        "encode",
    ],
)
def test_what_is_no_bell_is_refused(kwargs: Any) -> None:
    with pytest.raises(ValueError):
        Bell.parse(kwargs)


def test_workers_of_another_checkpoint_listen_elsewhere() -> None:
    assert BELL.queue == "sample.0123456789ab" == queue_names(Stage.SAMPLE, BELL.revision)[1]
    queues = {name for stage in Stage for revision in ("a" * 64, "b" * 64) for name in queue_names(stage, revision)}
    assert len(queues) == 12


def test_a_bell_for_recovered_jobs_rings_apart_and_reads_the_same() -> None:
    recovered = replace(BELL, recovered=True)
    assert recovered.queue == "recovered.sample.0123456789ab"
    assert recovered.kwargs() == BELL.kwargs() and Bell.parse(recovered.kwargs()) == BELL


@pytest.mark.parametrize(("rows", "unit_size", "bells"), [(0, 8, 0), (1, 8, 1), (8, 8, 1), (9, 8, 2), (5, 1, 5)])
def test_there_are_bells_for_all_rows(rows: int, unit_size: int, bells: int) -> None:
    assert bells_needed(rows, unit_size) == bells


def test_bells_ring_in_their_queues_in_order() -> None:
    app = Celery("test", set_as_current=False)
    app.conf.update(broker_options("memory://"))
    bells = [Bell(Stage.ENCODE, "a" * 64, "one"), BELL, Bell(Stage.ENCODE, "a" * 64, "two")]
    ring(app, bells)
    with app.connection_or_acquire() as connection:
        queue = connection.SimpleQueue(bells[0].queue)
        heard = [queue.get(timeout=PATIENCE_S) for _ in range(2)]
        assert [message.payload[1] for message in heard] == [bells[0].kwargs(), bells[2].kwargs()]
        assert heard[0].headers["task"] == TASK and heard[0].content_type == "application/json"
        queue.close()
    app.close()


def test_the_brokers_settings_keep_celerys_known_failures_away() -> None:
    options = broker_options("redis://host:6379/0")
    transport = options["broker_transport_options"]
    assert options["task_acks_late"] is False and options["worker_disable_prefetch"] is True
    assert options["task_ignore_result"] is True and options["accept_content"] == ["json"]
    assert transport["queue_order_strategy"] == "priority" and transport["socket_timeout"] > 0
    assert not set(options) - SETTING_KEYS, "Celery would ignore a name that it does not know"
