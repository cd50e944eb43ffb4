"""Schedules and webhooks as a shop's system calls them over HTTP."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from orchestrator import control
from orchestrator.access.scopes import Scope
from orchestrator.scheduler import Scheduler
from orchestrator.state import queries
from orchestrator.state.database import reading
from tests.integration.api_client import Api, open_api
from tests.integration.night import make_checkpoint
from tests.integration.seeding import Seeder
from tests.waiting import PATIENCE_S

NIGHTLY = {"name": "nightly", "cron": "0 2 * * *", "time_zone": "Asia/Shanghai", "options": {"preset": "flat-lay"}}
HOOK = {"url": "https://shop.example.com/hook?token=S3cret", "events": ["batch.paused", "job.failed"]}


@pytest.fixture
def api(engine: Engine, tmp_path: Path) -> Iterator[Api]:
    with open_api(engine, tmp_path, checkpoint=str(make_checkpoint(tmp_path))) as api:
        yield api


@pytest.fixture
def nightly(api: Api, tmp_path: Path) -> dict[str, Any]:
    """A schedule that was just made."""
    catalogue = tmp_path / "rows.csv"
    catalogue.write_text("image\na.jpg\nb.jpg\n")
    made: dict[str, Any] = api.post("/v1/schedules", 201, json={**NIGHTLY, "catalogue": str(catalogue)})
    return made


def audit(api: Api, action: str) -> dict[str, Any]:
    """The newest entry, which is of this action."""
    entry: dict[str, Any] = api.get("/v1/audit?limit=1")["data"][0]
    assert entry["action"] == action
    return entry


class TestSchedules:
    def test_one_is_made_listed_and_looked_at(self, api: Api, nightly: dict[str, Any]) -> None:
        assert nightly["options"] == {"preset": "flat-lay"} and nightly["overlap"] == "skip"
        assert nightly["next_fires"][0] == nightly["next_fire_at"] and len(nightly["next_fires"]) == 5
        assert {(at_s + 8 * 3600) % 86_400 for at_s in nightly["next_fires"]} == {2 * 3600}
        assert api.get("/v1/schedules/nightly") == nightly
        (listed,) = api.get("/v1/schedules")["data"]
        assert listed == {name: value for name, value in nightly.items() if name != "next_fires"}
        assert audit(api, "schedule.create")["target"] == "nightly"

    def test_it_is_fired_and_its_runs_come_in_pages(self, api: Api, nightly: dict[str, Any]) -> None:
        asked = [api.post("/v1/schedules/nightly/fire", 202)["id"] for _ in range(3)]
        assert audit(api, "schedule.fire")["detail"] == {"run": asked[-1]}
        scheduler = Scheduler(api.engine, api.settings)
        scheduler.tick()
        scheduler.wait(PATIENCE_S)
        page = api.get("/v1/schedules/nightly/runs?limit=2")
        rest = api.get("/v1/schedules/nightly/runs", params={"limit": 2, "after": page["next"]})
        runs = page["data"] + rest["data"]
        assert [run["id"] for run in runs] == asked[::-1] and not rest["has_more"]
        assert [run["state"] for run in runs] == ["skipped", "skipped", "started"]
        assert api.get(f"/v1/batches/{runs[-1]['batch_id']}")["request_counts"]["total"] == 2
        assert api.get("/v1/schedules")["data"][0]["last_run"]["id"] == asked[-1]

    def test_it_is_changed_paused_and_removed(self, api: Api, nightly: dict[str, Any]) -> None:
        change = {"paused": True, "cron": "0 3 * * *", "options": {"prompt": "press it"}, "missed": "skip"}
        changed = api.client.patch("/v1/schedules/nightly", json=change).json()
        assert (changed["paused"], changed["next_fire_at"], changed["next_fires"]) == (True, None, [])
        assert (changed["options"], changed["missed"]) == ({"prompt": "press it"}, "skip")
        assert audit(api, "schedule.change")["detail"] == change
        resumed = api.client.patch("/v1/schedules/nightly", json={"paused": False}).json()
        assert (resumed["next_fire_at"] + 8 * 3600) % 86_400 == 3 * 3600
        assert api.client.delete("/v1/schedules/nightly").status_code == 204
        assert api.client.get("/v1/schedules/nightly").status_code == 404

    @pytest.mark.parametrize(
        ("change", "status", "code", "told"),
        [
            ({"name": "nightly"}, 409, "name_taken", "already"),
            ({"cron": "0 25 * * *"}, 422, "bad_fire_time", "hour"),
            ({"time_zone": "Asia/Shanghia"}, 422, "bad_fire_time", "did you mean Asia/Shanghai"),
            ({"options": {"stepz": 8}}, 422, "unknown_option", "stepz"),
            ({"options": {"deadline": "2030-01-01T00:00+00:00"}}, 422, "bad_schedule", "give a duration"),
            ({"catalogue": "ftp://x/rows.csv"}, 422, "bad_catalogue", "not supported"),
            ({"name": "a/b"}, 422, "invalid", "name"),
        ],
    )
    def test_what_cannot_work_is_a_problem(
        self, api: Api, nightly: dict[str, Any], change: dict[str, Any], status: int, code: str, told: str
    ) -> None:
        asked = {**NIGHTLY, "name": "other", "catalogue": nightly["catalogue"], **change}
        answer = api.client.post("/v1/schedules", json=asked)
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
        assert told in answer.json()["detail"]
        assert len(api.get("/v1/schedules")["data"]) == 1

    def test_making_is_for_administrators_and_firing_for_submitters(self, api: Api, nightly: dict[str, Any]) -> None:
        submit, read = api.bearer(Scope.SUBMIT), api.bearer(Scope.READ)
        refused = api.client.post("/v1/schedules", json={**NIGHTLY, "catalogue": "s3://shop/x.csv"}, headers=submit)
        assert refused.status_code == 403
        assert api.client.delete("/v1/schedules/nightly", headers=submit).status_code == 403
        assert api.client.post("/v1/schedules/nightly/fire", headers=submit).status_code == 202
        assert api.client.post("/v1/schedules/nightly/fire", headers=read).status_code == 403
        assert api.client.get("/v1/schedules/nightly/runs", headers=read).status_code == 200


class TestWebhooks:
    def test_one_is_made_its_secret_shown_once_and_rotated(self, api: Api) -> None:
        made = api.post("/v1/webhooks", 201, json=HOOK)
        assert made["secret"].startswith("whsec_") and made["events"] == ["batch.paused", "job.failed"]
        shown = api.get(f"/v1/webhooks/{made['id']}")
        assert "secret" not in shown and api.get("/v1/webhooks")["data"] == [shown]
        assert "S3cret" not in json.dumps(shown) + json.dumps(audit(api, "webhook.create"))
        rotated = api.post(f"/v1/webhooks/{made['id']}/rotate-secret")
        assert rotated["secret"] not in (made["secret"], "") and rotated["rotated_at"]
        assert rotated["secret"] not in json.dumps(audit(api, "webhook.rotate"))
        assert api.client.delete(f"/v1/webhooks/{made['id']}").status_code == 204
        assert api.client.delete(f"/v1/webhooks/{made['id']}").status_code == 404

    def test_deliveries_are_listed_looked_at_and_replayed(self, api: Api, seed: Seeder) -> None:
        path = f"/v1/webhooks/{api.post('/v1/webhooks', 201, json=HOOK)['id']}"
        seed.batch(jobs=1)
        control.pause(api.engine, "b")
        test = api.post(f"{path}/test", 202)
        page = api.get(f"{path}/deliveries?limit=1")
        rest = api.get(f"{path}/deliveries", params={"limit": 1, "after": page["next"]})
        assert page["data"] == [test] and rest["data"][0]["event"] == "batch.paused" and not rest["has_more"]
        with api.engine.begin() as connection:
            claimed = queries.claim_delivery(connection, test["webhook_id"], 60)
            assert claimed is not None
            queries.end_delivery(
                connection, claimed, status=410, latency_s=0.2, error="status 410", answer="gone", delay_s=90_000
            )
        (failed,) = api.get(f"{path}/deliveries?state=failed")["data"]
        detail = api.get(f"{path}/deliveries/{failed['id']}")
        assert json.loads(detail["body"])["data"]["batch"] == "b" and detail["log"][0]["answer"] == "gone"
        replayed = api.post(f"{path}/deliveries/{failed['id']}/replay", 202)
        assert (replayed["state"], replayed["message_id"]) == ("pending", failed["message_id"])
        assert audit(api, "webhook.replay")["detail"] == {"delivery": failed["id"]}

    def test_a_delivery_of_another_webhook_is_not_found(self, api: Api) -> None:
        first, second = (api.post("/v1/webhooks", 201, json=HOOK)["id"] for _ in range(2))
        delivery = api.post(f"/v1/webhooks/{first}/test", 202)["id"]
        assert api.client.get(f"/v1/webhooks/{second}/deliveries/{delivery}").status_code == 404
        assert api.client.post(f"/v1/webhooks/{second}/deliveries/{delivery}/replay").status_code == 404

    def test_a_url_that_leads_inside_is_a_problem(self, api: Api) -> None:
        answer = api.client.post("/v1/webhooks", json={**HOOK, "url": "http://169.254.169.254/?token=S3cret"})
        assert (answer.status_code, answer.json()["code"]) == (422, "bad_webhook") and "S3cret" not in answer.text
        with reading(api.engine).connect() as connection:
            assert queries.list_webhooks(connection) == []

    def test_all_of_it_is_for_administrators(self, api: Api) -> None:
        assert api.client.get("/v1/webhooks", headers=api.bearer(Scope.SUBMIT)).status_code == 403
