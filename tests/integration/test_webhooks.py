"""Webhooks: every change that somebody listens for is told, signed, at least once; nobody is led astray."""

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, update

from orchestrator import control, schedules, webhooks
from orchestrator import deliverer as deliverer_room
from orchestrator.cli.local import Local
from orchestrator.deliverer import Deliverer, back_off_s
from orchestrator.pruner import Pruner
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.bulk import insert_jobs
from orchestrator.state.database import now, reading
from orchestrator.state.queries import Delivery, Failed, Webhook, outbox
from orchestrator.state.tables import batches, deliveries, delivery_attempts
from orchestrator.state.tables import webhooks as webhook_table
from orchestrator.state.transitions import BatchStatus, DeliveryState, Event, Stage
from orchestrator.storage import outward
from orchestrator.webhooks import NoWebhook, WebhookError
from tests.integration.night import Night
from tests.integration.seeding import Seeder, job_row
from tests.outside import HOST, Outside, lead_outside, listen, say
from tests.waiting import PATIENCE_S, wait_until

DOCS = Path(__file__).parents[2] / "docs" / "webhooks.md"
S = DeliveryState
SETTINGS = Settings()


@pytest.fixture(scope="module")
def listening() -> Iterator[Outside]:
    with listen() as outside:
        yield outside


@pytest.fixture
def shop(listening: Outside, monkeypatch: pytest.MonkeyPatch) -> Outside:
    """A shop's server, reached by its name."""
    listening.clear()
    lead_outside(monkeypatch)
    return listening


class Office:
    """Adds webhooks and sends what is due, in the database under test."""

    def __init__(self, engine: Engine, shop: Outside) -> None:
        self.engine, self.shop = engine, shop
        self.deliverer = Deliverer(engine, SETTINGS)

    def listen(self, *events: Event, path: str = "/hook") -> str:
        """Add a webhook for these events; gives its secret."""
        return webhooks.add(self.engine, self.shop.url(path), events, SETTINGS).secret

    def deliver(self, deliverer: Deliverer | None = None) -> None:
        """Send all that is due."""
        deliverer = deliverer or self.deliverer
        deliverer._next_s = 0.0
        deliverer.tick()
        deliverer.wait(PATIENCE_S)

    def all(self) -> list[Delivery]:
        """Every delivery, the oldest first."""
        with reading(self.engine).connect() as connection:
            return queries.list_deliveries(connection, limit=1000)[::-1]

    def told(self) -> list[dict[str, Any]]:
        """What lies in the outbox, the oldest first."""
        return [json.loads(each.body) for each in self.all()]

    def come_due(self, **given: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(update(deliveries).values(next_at=now() - 1, **given))


@pytest.fixture
def office(engine: Engine, shop: Outside) -> Office:
    return Office(engine, shop)


def documented_verify() -> Callable[..., bool]:
    """The function that docs/webhooks.md gives to receivers."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    verify: Callable[..., bool] = names["verify"]
    return verify


class TestDelivery:
    def test_a_completed_batch_is_told_and_signed_as_documented(self, seed: Seeder, office: Office) -> None:
        secret = office.listen(Event.BATCH_COMPLETED)
        for batch_id in ("b", "c"):
            seed.batch(batch_id)
            if batch_id == "b":
                control.cancel(seed.engine, batch_id)  # of which nothing is told
            assert seed.do(queries.close_batch, batch_id, reopened=0)
        office.deliver()
        (message,) = office.shop.received
        told = json.loads(message.body)
        assert (told["type"], told["data"]["batch"], told["data"]["status"]) == ("batch.completed", "c", "completed")
        assert told["data"]["manifest"] == "/results/c/manifest.jsonl"
        assert set(told["data"]["request_counts"].values()) == {0} and told["data"]["ended_at"].endswith("Z")
        assert message.headers["content-type"] == "application/json"
        verify = documented_verify()
        assert verify(secret, message.headers, message.body)
        assert not verify(secret, message.headers, message.body + b" ")
        assert not verify(webhooks.new_secret(), message.headers, message.body)
        assert not verify(secret, {**message.headers, "webhook-timestamp": "1"}, message.body)
        (delivery,) = office.all()
        assert (delivery.state, delivery.status, delivery.attempts, delivery.error) == (S.DELIVERED, 204, 1, None)
        assert delivery.latency_s is not None and 0 < delivery.latency_s < 60

    def test_the_example_of_the_standard_gives_its_signature(self) -> None:
        secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", '{"test": 2432232314}'
        signature = webhooks.sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
        assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

    def test_what_is_not_taken_is_sent_again_later_under_the_same_id(
        self, seed: Seeder, office: Office, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        office.listen(Event.BATCH_PAUSED)
        seed.batch(jobs=1)
        control.pause(seed.engine, "b")
        office.shop.statuses += [500, 429]
        monkeypatch.setattr(deliverer_room, "back_off_s", lambda tries: 100 * back_off_s(tries))
        office.deliver()
        office.deliver()
        assert len(office.shop.received) == 1  # not before its time
        (delivery,) = office.all()
        assert (delivery.state, delivery.status, delivery.error) == (S.PENDING, 500, "status 500")
        assert delivery.next_at > delivery.created_at + 300
        for _ in range(2):
            office.come_due()
            office.deliver()
        assert office.all()[0].state == S.DELIVERED
        assert len({(each.body, each.headers["webhook-id"]) for each in office.shop.received}) == 1
        _, log = webhooks.find_delivery(office.engine, delivery.id)
        assert [(each.attempt, each.status, each.error) for each in log] == [
            (1, 500, "status 500"), (2, 429, "status 429"), (3, 204, None),
        ]  # fmt: skip
        assert all(each.latency_s > 0 and each.at >= delivery.created_at for each in log)

    def test_after_a_day_it_has_failed_and_can_be_replayed(self, seed: Seeder, office: Office) -> None:
        office.listen(Event.BATCH_PAUSED)
        seed.batch(jobs=1)
        control.pause(seed.engine, "b")
        office.come_due(since=now() - 86_399)
        office.shop.statuses.append(503)
        office.deliver()
        (delivery,) = office.all()
        assert delivery.state == S.FAILED and delivery.ended_at is not None
        office.come_due()
        office.deliver()
        assert len(office.shop.received) == 1
        webhooks.replay(office.engine, delivery.id)
        office.deliver()
        assert office.all()[0].state == S.DELIVERED
        assert len({each.headers["webhook-id"] for each in office.shop.received}) == 1

    def test_a_replayed_message_is_tried_again_as_soon_as_a_new_one(self, seed: Seeder, office: Office) -> None:
        office.listen(Event.BATCH_PAUSED)
        seed.batch(jobs=1)
        control.pause(seed.engine, "b")
        for _ in range(6):
            office.shop.statuses.append(503)
            office.come_due()
            office.deliver()
        (delivery,) = office.all()
        assert delivery.next_at - clock(seed) > 1_000
        webhooks.replay(office.engine, delivery.id)
        for longest_s in (6.5, 25.5):
            office.shop.statuses.append(503)
            office.come_due()
            office.deliver()
            assert office.all()[0].next_at - clock(seed) < longest_s
        _, log = webhooks.find_delivery(office.engine, delivery.id)
        assert [each.attempt for each in log] == list(range(1, 9)), "the log goes on"

    def test_back_off_grows_with_jitter_to_two_hours(self) -> None:
        assert {3.75 <= back_off_s(1) <= 6.25 for _ in range(50)} == {True}
        assert len({back_off_s(1) for _ in range(50)}) > 10
        assert 240 <= back_off_s(4) <= 400
        assert 5_400 <= back_off_s(7) <= 9_000 and 5_400 <= back_off_s(10_000) <= 9_000

    def test_a_deliverer_that_died_at_it_is_gone_on_for(self, seed: Seeder, office: Office) -> None:
        office.listen(Event.BATCH_PAUSED)
        seed.batch(jobs=1)
        control.pause(seed.engine, "b")
        with office.engine.begin() as connection:
            webhook = queries.list_webhooks(connection)[0]
            claimed = queries.claim_delivery(connection, webhook.id, lease_s=60)
        assert claimed is not None
        office.deliver()
        assert office.shop.received == []
        office.come_due()  # its lease is over
        office.deliver()
        assert (office.all()[0].state, office.all()[0].attempts) == (S.DELIVERED, 2)
        with office.engine.begin() as connection:  # and if it was only slow, it changes nothing any more
            late = {"status": 500, "latency_s": 70.0, "error": "status 500", "answer": None, "delay_s": 5.0}
            assert queries.end_delivery(connection, claimed, **late) is None
        assert office.all()[0].state == S.DELIVERED

    def test_a_process_killed_while_it_sends_is_gone_on_for(self, seed: Seeder, office: Office) -> None:
        office.listen(Event.BATCH_PAUSED)
        seed.batch(jobs=1)
        control.pause(seed.engine, "b")
        arrived, go_on = threading.Event(), threading.Event()

        def answer(handler: Any) -> None:
            arrived.set()
            go_on.wait(PATIENCE_S)
            say(handler, 200)

        office.shop.answer = answer
        url = seed.engine.url.render_as_string(hide_password=False)
        command = [sys.executable, "-m", "tests.integration.deliverer_process", url]
        with subprocess.Popen(command, cwd=DOCS.parents[1]) as process:
            try:
                assert arrived.wait(PATIENCE_S), "nothing was sent"
            finally:
                process.send_signal(signal.SIGKILL)
        go_on.set()
        office.shop.answer = None
        (delivery,) = office.all()
        assert (delivery.state, delivery.attempts) == (S.PENDING, 1), "the try is counted"
        office.deliver()
        assert len(office.shop.received) == 1, "its lease holds for a minute"
        office.come_due()
        office.deliver()
        first, second = office.shop.received
        assert (first.body, first.headers["webhook-id"]) == (second.body, second.headers["webhook-id"])
        (delivery,) = office.all()
        assert (delivery.state, delivery.attempts) == (S.DELIVERED, 2)

    def test_several_deliverers_send_each_message_once(self, seed: Seeder, office: Office) -> None:
        office.listen(Event.JOB_FAILED)
        fail_jobs(seed, 30)
        others = [Deliverer(office.engine, SETTINGS) for _ in range(3)]
        threads = [threading.Thread(target=office.deliver, args=(each,)) for each in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        office.deliver()
        assert {each.state for each in office.all()} == {S.DELIVERED}
        ids = [each.headers["webhook-id"] for each in office.shop.received]
        assert len(ids) == len(set(ids)) == 30

    def test_a_slow_receiver_holds_up_no_other(
        self, seed: Seeder, office: Office, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(deliverer_room, "TIMEOUT_S", PATIENCE_S)
        monkeypatch.setattr(outward, "READ_TIMEOUT_S", PATIENCE_S)
        office.listen(Event.BATCH_PAUSED, path="/slow")
        office.listen(Event.BATCH_PAUSED, path="/quick")
        seed.batch(jobs=1)
        go_on = threading.Event()

        def answer(handler: Any) -> None:
            if handler.path == "/slow":
                go_on.wait(PATIENCE_S)
            say(handler, 200)

        office.shop.answer = answer
        sending = threading.Thread(target=office.deliver)
        control.pause(seed.engine, "b")
        sending.start()
        try:
            wait_until(lambda: S.DELIVERED in [each.state for each in office.all()], "the quick one is told", 60)
            states = {each.webhook_id: each.state for each in office.all()}
        finally:
            go_on.set()
            sending.join()
        assert sorted(states.values()) == [S.DELIVERED, S.PENDING]
        assert {each.state for each in office.all()} == {S.DELIVERED}

    @pytest.mark.parametrize("status", [500, 204])
    def test_more_webhooks_than_lanes_take_turns(
        self, seed: Seeder, office: Office, monkeypatch: pytest.MonkeyPatch, status: int
    ) -> None:
        monkeypatch.setattr(deliverer_room, "LANES", 2)
        monkeypatch.setattr(deliverer_room, "back_off_s", lambda tries: 1_000.0)
        monkeypatch.setattr(deliverer_room, "TURN_S", 2.0 if status == 500 else 0.0)  # dead ones, or slow ones
        for path in ("/one", "/other"):
            office.listen(Event.JOB_FAILED, path=path)
            office.shop.says(path, status)
        fail_jobs(seed, 6)
        office.listen(Event.BATCH_PAUSED, path="/last")
        control.pause(seed.engine, "b")
        for _ in range(2):
            office.deliver()
        asked = [path for _, path in office.shop.asked]
        assert "/last" in asked, "it had its turn"
        assert asked.index("/last") <= 3 and len(asked) <= 4, "after one message of each"
        for _ in range(12):
            office.deliver()
        asked = [path for _, path in office.shop.asked]
        assert (asked.count("/one"), asked.count("/other"), asked.count("/last")) == (6, 6, 1)

    def test_a_rotated_secret_signs_beside_the_old_one_for_a_day(self, seed: Seeder, office: Office) -> None:
        old = office.listen(Event.BATCH_PAUSED)
        webhook = list_webhooks(office.engine)[0]
        new = webhooks.rotate(office.engine, webhook.id).secret
        webhooks.test(office.engine, webhook.id)
        office.deliver()
        verify, message = documented_verify(), office.shop.received[0]
        assert verify(old, message.headers, message.body) and verify(new, message.headers, message.body)
        assert json.loads(message.body)["type"] == "webhook.test"
        with office.engine.begin() as connection:
            connection.execute(update(webhook_table).values(rotated_at=now() - 86_401))
        webhooks.test(office.engine, webhook.id)
        office.deliver()
        message = office.shop.received[1]
        assert not verify(old, message.headers, message.body) and verify(new, message.headers, message.body)

    def test_of_an_answer_only_a_redacted_beginning_is_kept(self, seed: Seeder, office: Office) -> None:
        office.listen(Event.BATCH_PAUSED)
        seed.batch(jobs=1)
        control.pause(seed.engine, "b")
        body = b'{"password": "S3cret"} ' + b"x" * 100_000
        office.shop.answer = lambda handler: say(handler, 400, body)
        office.deliver()
        with reading(office.engine).connect() as connection:
            kept = connection.execute(select(delivery_attempts.c.answer)).scalar_one()
        assert "S3cret" not in kept and "xxx" in kept and len(kept) <= 310

    def test_old_deliveries_are_forgotten(self, seed: Seeder, office: Office) -> None:
        office.listen(Event.JOB_FAILED)
        fail_jobs(seed, 3)
        office.deliver()
        fail_jobs(seed, 2, "c")
        with office.engine.begin() as connection:
            ended = deliveries.c.ended_at.is_not(None)
            connection.execute(update(deliveries).where(ended).values(ended_at=now() - 31 * 86_400))
        Pruner(office.engine).tick()
        office.deliver(Deliverer(office.engine, SETTINGS))
        assert len(office.all()) == 2


class TestGuard:
    @pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "10.1.2.3", "::1"])
    def test_no_message_goes_to_an_address_that_is_not_public(
        self, engine: Engine, seed: Seeder, monkeypatch: pytest.MonkeyPatch, address: str
    ) -> None:
        monkeypatch.setattr(outward, "find_addresses", lambda host, port: ["93.184.215.14", address])
        monkeypatch.setattr("socket.create_connection", lambda *_, **__: pytest.fail("it was connected to"))
        made = webhooks.add(engine, f"https://{HOST}/hook", [Event.BATCH_PAUSED], SETTINGS)
        webhooks.test(engine, made.webhook.id)
        deliverer = Deliverer(engine, SETTINGS)
        deliverer.tick()
        deliverer.wait(PATIENCE_S)
        with reading(engine).connect() as connection:
            (delivery,) = queries.list_deliveries(connection, limit=9)
        assert delivery.state == S.PENDING and str(delivery.error).startswith("address_not_public")

    def test_a_redirect_is_not_followed(self, seed: Seeder, office: Office) -> None:
        office.listen(Event.BATCH_PAUSED)
        seed.batch(jobs=1)
        control.pause(seed.engine, "b")
        office.shop.answer = lambda handler: say(handler, 302, Location=office.shop.url("/elsewhere"))
        office.deliver()
        assert [each.path for each in office.shop.received] == ["/hook"]
        assert office.all()[0].error == "status 302; redirects are not followed"

    @pytest.mark.parametrize(
        ("url", "told"),
        [
            ("http://shop.example.com/hook", "only https"),
            ("https://anna:S3cret@shop.example.com/hook", "without user and password"),
            ("https:///hook", "expected https"),
            ("https://other.example.net/hook", "KONTEXT_WEBHOOK_HOSTS"),
            ("file:///etc/passwd", "only https"),
            ("https://shop.example.com/" + "x" * 3000, "2,000 characters"),
        ],
    )
    def test_a_url_that_would_never_be_asked_is_refused(self, engine: Engine, url: str, told: str) -> None:
        settings = Settings(webhook_hosts=("shop.example.com",))
        with pytest.raises(WebhookError, match=told) as caught:
            webhooks.add(engine, url, [Event.BATCH_PAUSED], settings)
        assert "S3cret" not in str(caught.value)
        assert list_webhooks(engine) == []

    def test_a_host_that_is_no_longer_allowed_gets_nothing(self, seed: Seeder, office: Office) -> None:
        office.listen(Event.BATCH_PAUSED)
        seed.batch(jobs=1)
        control.pause(seed.engine, "b")
        office.deliver(Deliverer(office.engine, Settings(webhook_hosts=("elsewhere.example.com",))))
        assert office.shop.received == [] and str(office.all()[0].error).startswith("host_not_allowed")


class TestEvents:
    def test_nothing_is_written_for_what_nobody_listens_for(self, seed: Seeder, office: Office) -> None:
        office.listen(Event.SCHEDULE_FIRED)
        fail_jobs(seed, 2)
        control.pause(seed.engine, "b")
        assert office.all() == []

    def test_a_change_that_is_rolled_back_is_not_told(self, seed: Seeder, office: Office) -> None:
        office.listen(Event.BATCH_PAUSED)
        seed.batch(jobs=1)
        with pytest.raises(RuntimeError), seed.engine.begin() as connection:
            assert queries.move_batch(connection, "b", BatchStatus.PAUSED)
            raise RuntimeError
        assert office.all() == []
        control.pause(seed.engine, "b")
        control.pause(seed.engine, "b")  # it is paused already
        assert [each["type"] for each in office.told()] == ["batch.paused"]
        assert office.told()[0]["data"]["reason"] == "by request"

    def test_each_listener_gets_its_own_delivery_of_one_message(self, seed: Seeder, office: Office) -> None:
        for _ in range(2):
            office.listen(Event.BATCH_PAUSED, Event.BATCH_COMPLETED)
        seed.batch(jobs=1)
        control.pause(seed.engine, "b")
        first, second = office.all()
        assert first.message_id == second.message_id and first.webhook_id != second.webhook_id

    def test_failed_jobs_are_told_with_their_code(self, seed: Seeder, office: Office) -> None:
        office.listen(Event.JOB_FAILED)
        fail_jobs(seed, 2)
        first, second = [each["data"] for each in office.told()]
        assert first | {"job": 0} == {
            "job": 0, "batch": "b", "custom_id": "photo-1", "line": 1, "take": 1, "attempt": 0, "code": "unavailable",
            "message": "message",
        }  # fmt: skip
        assert second["line"] == 2

    def test_of_very_many_failures_the_first_are_told_and_that_there_are_more(
        self, seed: Seeder, office: Office, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outbox, "JOBS_TOLD", 3)
        for path in ("/a", "/b"):
            office.listen(Event.JOB_FAILED, path=path)
        group = seed.queued(9)
        unit = seed.claim(group)

        def fail(number: int) -> list[tuple[int | None, str]]:
            before = len(office.all())
            ends = [Failed(job.id, job.attempt, 0.1, "unavailable", "message") for job in unit[:number]]
            del unit[:number]
            assert len(seed.do(queries.fail, Stage.ENCODE, ends)) == number
            told = [each["data"] for each in office.told()[before:]]
            assert told[::2] == told[1::2], "each listener is told the same"
            return [(each["line"], each["code"]) for each in told[::2]]

        assert fail(2) == [(1, "unavailable"), (2, "unavailable")]
        assert fail(3) == [(3, "unavailable"), (None, "more_failed")]
        assert fail(2) == fail(1) == []
        assert "jobs?state=failed" in office.told()[-1]["data"]["message"]
        fail_jobs(seed, 1, "other")
        assert office.told()[-1]["data"]["batch"] == "other", "another batch is told of as ever"
        # Tried again, it is news again.
        seed.do(lambda c: c.execute(update(batches).where(batches.c.id == "b").values(resumed_at=now())))
        assert fail(1) == [(9, "unavailable")]

    def test_units_that_fail_at_once_count_what_each_other_told(
        self, seed: Seeder, office: Office, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outbox, "JOBS_TOLD", 3)
        office.listen(Event.JOB_FAILED)
        ends = [Failed(job.id, job.attempt, 0.1, "unavailable", "message") for job in seed.claim(seed.queued(4))]
        other = threading.Thread(target=seed.do, args=(queries.fail, Stage.ENCODE, ends[2:]))
        with seed.engine.begin() as connection:
            queries.fail(connection, Stage.ENCODE, ends[:2])
            other.start()
            other.join(0.3)
        other.join()
        assert [each["data"]["code"] for each in office.told()] == ["unavailable"] * 3 + ["more_failed"]

    def test_who_begins_to_listen_is_told_though_others_have_heard_enough(
        self, seed: Seeder, office: Office, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outbox, "JOBS_TOLD", 1)
        office.listen(Event.JOB_FAILED)
        ends = [Failed(job.id, job.attempt, 0.1, "unavailable", "message") for job in seed.claim(seed.queued(3))]
        seed.do(queries.fail, Stage.ENCODE, ends[:2])
        office.listen(Event.JOB_FAILED, path="/late")
        seed.do(queries.fail, Stage.ENCODE, ends[2:])
        assert [each["data"]["line"] for each in office.told()] == [1, None, 3]

    def test_a_batch_of_very_many_bad_rows_is_told_as_briefly(
        self, seed: Seeder, office: Office, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outbox, "JOBS_TOLD", 3)
        office.listen(Event.JOB_FAILED)
        seed.batch("rows")
        bad = [job_row("rows", line, recipe=None, state="failed", code="bad_seed") for line in range(1, 21)]
        assert seed.do(insert_jobs, bad) == []
        for first in (1, 11):
            seed.do(queries.tell_of_bad_rows, "rows", first, first + 9)
        assert [each["data"]["code"] for each in office.told()] == ["bad_seed"] * 3 + ["more_failed"]

    def test_expired_jobs_poison_and_bad_rows_are_told_too(self, seed: Seeder, office: Office) -> None:
        office.listen(Event.JOB_FAILED)
        seed.batch("late", jobs=2, deadline_at=1.0)
        seed.do(queries.expire_jobs, "late", 10)
        group = seed.queued(1, "poison")
        seed.claim(group)
        seed.do(queries.take_back, "w", crashes_allowed=0)
        seed.batch("rows")
        bad = [job_row("rows", line, recipe=None, state="failed", code="bad_seed") for line in (1, 2)]
        assert seed.do(insert_jobs, bad) == []
        seed.do(queries.tell_of_bad_rows, "rows", 1, 2)
        told = [(each["data"]["batch"], each["data"]["code"]) for each in office.told()]
        assert sorted(told) == [
            ("late", "expired"), ("late", "expired"), ("poison", "poison"), ("rows", "bad_seed"), ("rows", "bad_seed"),
        ]  # fmt: skip

    def test_what_came_of_a_schedule_is_told(self, office: Office, tmp_path: Path) -> None:
        office.listen(Event.SCHEDULE_FIRED, Event.BATCH_FAILED, Event.JOB_FAILED)
        night = Night(office.engine, tmp_path)
        night.write("a", "a")
        night.plan()
        for _ in range(2):
            schedules.fire(night.engine, "nightly")
            night.tick()
        (night.folder / "nightly.csv").unlink()
        night.plan("broken")
        schedules.fire(night.engine, "broken")
        night.tick()
        told = [(each["type"], each["data"].get("state"), each["data"]["batch"]) for each in office.told()]
        batch_id = night.runs()[-1].batch_id
        assert told == [
            ("job.failed", None, batch_id),  # the doubled custom_id
            ("schedule.fired", "started", batch_id),
            ("schedule.fired", "skipped", None),
            ("schedule.fired", "failed", None),
            ("batch.failed", "failed", None),
        ]
        assert "does not exist" in office.told()[-1]["data"]["reason"]

    def test_a_catalogue_that_breaks_off_is_told_once(
        self, office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        office.listen(Event.BATCH_FAILED)
        night = Night(office.engine, tmp_path)
        night.write("a")
        night.plan()
        schedules.fire(night.engine, "nightly")

        def break_off(*_: Any) -> None:
            raise RuntimeError("torn")

        monkeypatch.setattr("orchestrator.batches._store_rows", break_off)
        night.tick()
        (told,) = office.told()
        assert told["data"]["batch"] == night.run().batch_id and "torn" in told["data"]["reason"]
        assert told["data"]["schedule"] == "nightly"


class TestManagement:
    def test_a_removed_webhook_takes_its_deliveries_with_it(self, seed: Seeder, office: Office) -> None:
        office.listen(Event.BATCH_PAUSED)
        seed.batch(jobs=1)
        control.pause(seed.engine, "b")
        webhook = list_webhooks(office.engine)[0]
        webhooks.remove(office.engine, webhook.id)
        assert office.all() == []
        for ask in (webhooks.remove, webhooks.rotate, webhooks.test, webhooks.find):
            with pytest.raises(NoWebhook):
                ask(office.engine, webhook.id)
        with pytest.raises(NoWebhook, match="no delivery 1"):
            webhooks.replay(office.engine, 1)

    def test_deliveries_come_in_pages_and_by_state(self, seed: Seeder, office: Office) -> None:
        office.listen(Event.JOB_FAILED)
        fail_jobs(seed, 5)
        office.deliver()
        fail_jobs(seed, 1, "c")
        with reading(office.engine).connect() as connection:
            page = queries.list_deliveries(connection, limit=4)
            rest = queries.list_deliveries(connection, limit=4, before=page[-1].id)
            waiting = queries.list_deliveries(connection, state=S.PENDING, limit=9)
        assert [each.id for each in (*page, *rest)] == sorted((each.id for each in office.all()), reverse=True)
        assert len(waiting) == 1

    def test_unknown_events_are_refused(self, engine: Engine) -> None:
        for events, told in ((["batch.exploded"], "'batch.exploded' is no event"), ([], "no event is named")):
            with pytest.raises(WebhookError, match=told):
                webhooks.add(engine, "https://shop.example.com/", events, SETTINGS)

    def test_a_url_is_shown_without_its_secret(self, engine: Engine) -> None:
        made = webhooks.add(engine, "https://shop.example.com/?token=S3cret", [Event.BATCH_PAUSED], SETTINGS)
        with ExitStack() as opened:
            (shown,) = Local(engine, SETTINGS, opened).webhooks()
        assert "S3cret" not in repr(shown) and made.secret not in repr(shown)


def clock(seed: Seeder) -> float:
    """The database's clock."""
    return seed.do(queries.read_clock)


def list_webhooks(engine: Engine) -> list[Webhook]:
    with reading(engine).connect() as connection:
        return queries.list_webhooks(connection)


def fail_jobs(seed: Seeder, number: int, batch_id: str = "b") -> None:
    group = seed.queued(number, batch_id)
    ends = [Failed(job.id, job.attempt, 0.1, "unavailable", "message") for job in seed.claim(group)]
    assert len(seed.do(queries.fail, Stage.ENCODE, ends)) == number
