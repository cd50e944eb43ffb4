"""The API described by itself: OpenAPI with an example of everything, behind a key like all else."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from orchestrator.api.access import Reader, open_router
from orchestrator.api.examples import EXAMPLES
from orchestrator.api.problems import ProblemDetails

router = open_router(include_in_schema=False)


@router.get("/v1/openapi.json")
def openapi(_: Reader, request: Request) -> JSONResponse:
    """The OpenAPI description of this version."""
    return JSONResponse(request.app.openapi(), headers={"cache-control": "private, max-age=60"})


def install_reference(app: FastAPI) -> None:
    """Complete what FastAPI derives from the routes by the shape of our problems, and by examples."""
    derive = app.openapi

    def describe() -> dict[str, Any]:
        described = derive()
        schemas = described.setdefault("components", {}).setdefault("schemas", {})
        schemas["ProblemDetails"] = ProblemDetails.model_json_schema(ref_template="#/components/schemas/{model}")
        for name, example in EXAMPLES.items():
            schemas[name]["examples"] = [example]
        return described

    app.openapi = describe  # type: ignore[method-assign]
