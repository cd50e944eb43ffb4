"""Style sheet, scripts and the icon, kept by browsers for as long as their content stands."""

from fastapi import APIRouter, Response
from starlette.exceptions import HTTPException

from orchestrator.dashboard.page import FOLDER

public = APIRouter(include_in_schema=False)
KINDS = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
# Pages name each file with the digest of all of them.
KEEP = "public, max-age=31536000, immutable"
FILES = {
    str(path.relative_to(FOLDER / "static")): path
    for path in sorted((FOLDER / "static").rglob("*"))
    if path.suffix in KINDS
}


@public.get("/static/{name:path}")
def send_static(name: str) -> Response:
    """One of the files there are; a name is looked up, never opened."""
    path = FILES.get(name)
    if path is None:
        raise HTTPException(404, f"there is no file {name[:80]!r}")
    return Response(path.read_bytes(), media_type=KINDS[path.suffix], headers={"cache-control": KEEP})
