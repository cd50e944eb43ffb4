"""The API against its own description: whatever is sent, nothing fails inside, and every answer has the shape told."""

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from orchestrator.api import examples, watcher
from orchestrator.api.watcher import Standing, Watcher
from orchestrator.state.database import open_database
from orchestrator.state.tables import metadata
from tests.integration.api_client import Api, open_api
from tests.integration.seeding import Seeder

EXAMPLES = 5
CHECKED = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder: Path = tmp_path_factory.mktemp("schema")
    engine = open_database(f"sqlite:///{folder / 'state.db'}")
    metadata.create_all(engine)
    seed = Seeder(engine)
    seed.batch("20261125-1f2e3d4c", jobs=3)
    follow = Watcher.follow

    async def follow_briefly(self: Watcher, batch_id: str | None = None) -> AsyncIterator[Standing | None]:
        """The first of what a stream tells: one that never ends would be read for ever."""
        async with aclosing(follow(self, batch_id)) as standings:
            yield await anext(standings)

    with pytest.MonkeyPatch.context() as patch, open_api(engine, folder) as api:
        patch.setattr(Watcher, "follow", follow_briefly)
        patch.setattr(watcher, "KEEP_ALIVE_S", 0.05)
        patch.setattr(watcher, "CLOSE_S", 0.05)  # each call has an event loop of its own, and leaves a look there
        yield api
    engine.dispose()


def exemplified(told: dict[str, Any]) -> bool:
    """Whether something described has an example, or says itself all that it may be."""
    if any(name in told for name in ("example", "examples", "const", "enum", "default", "$ref")):
        return True
    kinds = [kind for kind in told.get("anyOf", []) if kind.get("type") != "null"]
    inner = told.get("schema") or (kinds and kinds[0]) or told.get("items")
    return told.get("type") == "boolean" or (bool(inner) and exemplified(inner))


def test_everything_in_the_description_has_an_example(api: Api) -> None:
    described = api.get("/v1/openapi.json")
    assert described["openapi"].startswith("3.")
    without = [
        f"{name}.{member}"
        for name, schema in described["components"]["schemas"].items()
        for member, told in schema.get("properties", {}).items()
        if "examples" not in schema and not exemplified(told)
    ]
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            assert operation.get("security") and operation.get("summary"), where
            assert {"401", "403", "422"} <= set(operation["responses"]), where
            told = {parameter["name"]: parameter for parameter in operation.get("parameters", [])}
            for status, answer in {"body": operation.get("requestBody", {}), **operation["responses"]}.items():
                told |= {f"{status} {kind}": content for kind, content in answer.get("content", {}).items()}
            without += [f"{where} {name}" for name, each in told.items() if not exemplified(each)]
    assert without == []


def test_an_example_is_what_the_description_says(api: Api) -> None:
    described = api.get("/v1/openapi.json")
    for name, example in examples.EXAMPLES.items():
        schema = {"$ref": f"#/components/schemas/{name}", "components": described["components"]}
        jsonschema.validate(example, schema)
        properties = described["components"]["schemas"][name]["properties"]
        assert set(example) <= set(properties)
        assert set(example) == set(properties) or name == "ScheduleChange", f"{name} tells all there is"


def test_nothing_that_is_sent_breaks_it(api: Api) -> None:
    schema = schemathesis.openapi.from_asgi("/v1/openapi.json", api.app, headers=dict(api.client.headers))
    asked = set()
    for result in schema.get_all_operations():
        operation = result.ok()
        call_often(operation, dict(api.client.headers))
        asked.add((operation.method, operation.path))
    described = api.get("/v1/openapi.json")["paths"]
    assert asked == {(method, path) for path, methods in described.items() for method in methods}
    assert ("get", "/v1/events") in asked and ("get", "/v1/batches/{batch_id}/events") in asked


def call_often(operation: Any, headers: dict[str, str]) -> None:
    """Call one operation with some of what its description allows."""

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True,
        phases=(Phase.explicit, Phase.generate), suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy())
    def call(case: Any) -> None:
        case.call_and_validate(headers=headers, checks=CHECKED)

    call()
