"""The API against its own description: whatever is sent, nothing fails inside, and every answer has the shape told."""

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from orchestrator.state.database import open_database
from orchestrator.state.tables import metadata
from tests.integration.api_client import open_api
from tests.integration.seeding import Seeder

EXAMPLES = 5
# Streams that never end are tested where they are read.
UNENDING = ("/v1/events", "/v1/batches/{batch_id}/events")
CHECKED = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("schema")
    engine = open_database(f"sqlite:///{folder / 'state.db'}")
    metadata.create_all(engine)
    seed = Seeder(engine)
    seed.batch("20261125-1f2e3d4c", jobs=3)
    with open_api(engine, folder) as api:
        yield api
    engine.dispose()


def test_the_description_has_an_example_of_every_body(api: Any) -> None:
    described = api.get("/v1/openapi.json")
    assert described["openapi"].startswith("3.")
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            assert operation.get("security"), where
            assert operation.get("summary"), where
            assert {"401", "403", "422"} <= set(operation["responses"]), where
            for body in operation.get("requestBody", {}).get("content", {}).values():
                assert "example" in str(body) or "$ref" in str(body), where


def test_nothing_that_is_sent_breaks_it(api: Any) -> None:
    schema = schemathesis.openapi.from_asgi("/v1/openapi.json", api.app, headers=dict(api.client.headers))
    count = 0
    for result in schema.exclude(path=list(UNENDING)).get_all_operations():
        call_often(result.ok(), dict(api.client.headers))
        count += 1
    assert count > 25


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
