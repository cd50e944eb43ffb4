"""Who may call the API: keys, sessions, one-time links, CSRF, rates, headers; and that no route is left open."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from sqlalchemy import Engine, update
from starlette.testclient import TestClient

from orchestrator.access.keys import create_key
from orchestrator.access.scopes import Scope
from orchestrator.access.sessions import create_token
from orchestrator.api import access
from orchestrator.api.access import PUBLIC, GuardedRoute, open_router, safe_target
from orchestrator.api.app import build_app
from orchestrator.api.limits import Buckets
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import now, reading
from orchestrator.state.tables import api_keys, sign_ins

BROKER = "redis://127.0.0.1:1/0"


PUBLIC_ROUTES = {"/healthz", "/readyz", "/sign-in", "/static/{name:path}"}


@pytest.fixture
def app(engine: Engine, tmp_path: Path) -> FastAPI:
    url = engine.url.render_as_string(hide_password=False)
    return build_app(
        Settings(home=tmp_path, database_url=url, broker_url=BROKER, results_uri=str(tmp_path / "results"))
    )


@pytest.fixture
def hasty(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A client that may ask as often as it likes, with and without a key."""
    monkeypatch.setattr(access, "STRANGER_BURST", 1e6)
    url = engine.url.render_as_string(hide_password=False)
    app = build_app(Settings(home=tmp_path, database_url=url, broker_url=BROKER, api_requests_per_s=1e6))
    with TestClient(app, follow_redirects=False, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, follow_redirects=False, raise_server_exceptions=False) as client:
        yield client


def bearer(engine: Engine, scope: Scope = Scope.READ) -> dict[str, str]:
    return {"authorization": f"Bearer {create_key(engine, 'a shop', scope).secret}"}


def sign_in(client: TestClient, secret: str) -> str:
    """Sign in as a browser does; gives the session's CSRF token."""
    assert client.post("/sign-in", data={"secret": secret, "next": "/v1/openapi.json"}).status_code == 303
    opened = client.app.state.resources  # type: ignore[attr-defined]
    session = opened.sessions.check(client.cookies[opened.sessions.cookie_name])
    assert session is not None
    return session.csrf


def calls(app: FastAPI) -> list[tuple[str, str, Any]]:
    """Every method and path of the application behind the gate, parameters filled in, with its route."""
    found, public = [], set()
    for context in iter_route_contexts(app.routes):
        path = context.path or ""
        filled = re.sub(r"\{[^}]+\}", "1", path)
        if PUBLIC.fullmatch(filled):
            public.add(path)
        else:
            found += [(method, filled, context.original_route) for method in context.methods or {"GET"}]
    assert public == PUBLIC_ROUTES, "what answers everybody is named here one by one"
    return found


def ask(client: TestClient, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
    """The status and code of a request whose body cannot be read: whoever may not call learns nothing of that."""
    answer = client.request(method, path, content=b"{", headers={"content-type": "application/json", **headers})
    assert answer.headers["content-type"] == "application/problem+json", (method, path, answer.status_code)
    return answer.status_code, answer.json()["code"]


def cookie(client: TestClient, secret: str) -> dict[str, str]:
    """The session's cookie of a key, as a header."""
    opened = client.app.state.resources  # type: ignore[attr-defined]
    return {"cookie": f"{opened.sessions.cookie_name}={opened.sessions.open(secret)}"}


def test_no_route_answers_a_caller_without_the_right_scope(hasty: TestClient, engine: Engine) -> None:
    """Every route there is, asked without a key, with a revoked one, an ended session, and with each smaller scope."""
    made = {scope: create_key(engine, "a shop", scope).secret for scope in Scope}
    gone = create_key(engine, "gone", Scope.ADMIN)
    strangers = [{}, {"authorization": f"Bearer {gone.secret}"}, cookie(hasty, gone.secret), {"cookie": "kontext_x=y"}]
    with engine.begin() as connection:
        assert queries.revoke_key(connection, gone.key.id)
    routes = calls(hasty.app)  # type: ignore[arg-type]
    refused = answered = 0
    for method, path, route in routes:
        assert isinstance(route, GuardedRoute), f"{path} is behind no scope"
        for headers in strangers:
            assert ask(hasty, method, path, headers) == (401, "unauthorized"), (method, path, headers)
        (needed,) = {part.call.scope for part in route.dependant.dependencies if hasattr(part.call, "scope")}
        for scope in Scope:
            if scope.covers(needed):
                answered += 1
                continue
            for headers in ({"authorization": f"Bearer {made[scope]}"}, cookie(hasty, made[scope])):
                assert ask(hasty, method, path, headers) == (403, "scope"), (method, path, scope)
            refused += 1
    assert refused + answered == len(routes) * len(Scope)
    # What is described, and the pages, are among them: the list is not one of a few.
    described = hasty.app.openapi()["paths"]  # type: ignore[attr-defined]
    assert {re.sub(r"\{[^}]+\}", "1", path) for path in described} <= {path for _, path, _ in routes}
    assert len(routes) > 80 and refused > 60


def test_a_route_without_a_scope_cannot_be_made() -> None:
    router = open_router()
    with pytest.raises(TypeError, match=r"/forgotten: the route names no scope"):
        router.get("/forgotten")(lambda: None)


def test_a_key_works_until_it_is_revoked_and_is_known_by_its_digest_alone(client: TestClient, engine: Engine) -> None:
    made = create_key(engine, "  a shop ", Scope.READ)
    headers = {"authorization": f"bearer {made.secret}"}
    assert made.key.name == "a shop" and made.secret.startswith(f"kx_{made.key.id}_")
    assert client.get("/v1/openapi.json", headers=headers).status_code == 200
    with engine.begin() as connection:
        assert made.secret not in repr(connection.execute(api_keys.select()).all())
        key = queries.read_key(connection, made.key.id)
        assert key is not None and key.last_used_at is not None
        assert queries.revoke_key(connection, made.key.id)
        assert not queries.revoke_key(connection, made.key.id)
    assert client.get("/v1/openapi.json", headers=headers).status_code == 401


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer kx_0123456789ab_x", "Basic YTpi", "Bearer kx_0123456789ab_" + "x" * 43, "Bearer \xff"],
)
def test_a_wrong_key_is_told_what_to_do(client: TestClient, authorization: str) -> None:
    answer = client.get("/v1/openapi.json", headers={"authorization": authorization.encode("latin-1")})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "kontext key add" in answer.json()["detail"]


def test_a_secret_altered_by_one_letter_opens_nothing(client: TestClient, engine: Engine) -> None:
    secret = create_key(engine, "a shop", Scope.READ).secret
    altered = secret[:-1] + ("A" if secret[-1] != "A" else "B")
    assert client.get("/v1/openapi.json", headers={"authorization": f"Bearer {altered}"}).status_code == 401


@pytest.mark.parametrize("name", ["", " ", "a" * 101, "a\x00b", "a\nb"])
def test_a_key_needs_a_name(engine: Engine, name: str) -> None:
    with pytest.raises(ValueError, match="a key's name has 1 to 100"):
        create_key(engine, name, Scope.READ)


def test_a_one_time_link_opens_one_session(client: TestClient, engine: Engine) -> None:
    token = create_token(engine)
    answer = client.get(f"/sign-in?token={token}&next=/batches?status=running")
    assert (answer.status_code, answer.headers["location"]) == (303, "/batches?status=running")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=lax" in cookie
    assert client.get("/v1/openapi.json").status_code == 200
    client.cookies.clear()
    assert client.get(f"/sign-in?token={token}").status_code == 401
    expired = create_token(engine)
    with engine.begin() as connection:
        connection.execute(update(sign_ins).values(expires_at=now() - 1))
    assert client.get(f"/sign-in?token={expired}").status_code == 401


def test_a_page_sends_strangers_to_sign_in_and_back(client: TestClient) -> None:
    answer = client.get("/batches?status=failed", headers={"accept": "text/html,*/*"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?next=/batches%3Fstatus%3Dfailed")
    assert 'value="/batches?status=failed"' in client.get(answer.headers["location"]).text


@pytest.mark.parametrize(
    "target", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:x", "", None, "/a\nb"]
)
def test_signing_in_leads_nowhere_else(target: str | None) -> None:
    assert safe_target(target) == "/"


def test_a_session_ends_with_its_key_and_cannot_be_forged(client: TestClient, engine: Engine) -> None:
    made = create_key(engine, "a person", Scope.ADMIN)
    sign_in(client, made.secret)
    assert client.get("/v1/openapi.json").status_code == 200
    name = client.app.state.resources.sessions.cookie_name  # type: ignore[attr-defined]
    value = client.cookies[name]
    client.cookies.clear()
    forged = value[:-1] + ("0" if value[-1] != "0" else "1")
    for wrong in (forged, f"x{value}", "", ".", "é.é"):
        cookie = f"{name}={wrong}".encode()
        assert client.get("/v1/openapi.json", headers={"cookie": cookie}).status_code == 401
    assert client.get("/v1/openapi.json", headers={"cookie": f"{name}={value}"}).status_code == 200
    with engine.begin() as connection:
        queries.revoke_key(connection, made.key.id)
    assert client.get("/v1/openapi.json", headers={"cookie": f"{name}={value}"}).status_code == 401


def test_a_change_by_cookie_needs_the_token_and_our_own_page(client: TestClient, engine: Engine) -> None:
    csrf = sign_in(client, create_token(engine))
    assert client.post("/sign-out").json()["code"] == "csrf"
    assert client.post("/sign-out", headers={"x-csrf-token": "0" * 64}).json()["code"] == "csrf"
    for foreign in (
        {"origin": "https://evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        answer = client.post("/sign-out", headers={"x-csrf-token": csrf, **foreign})
        assert (answer.status_code, answer.json()["code"]) == (403, "cross_site")
    ours = {"origin": "http://testserver", "sec-fetch-site": "same-origin"}
    answer = client.post("/sign-out", data={"csrf_token": csrf}, headers=ours)
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    assert client.get("/v1/openapi.json").status_code == 401


def test_every_answer_forbids_inline_scripts_and_frames(client: TestClient, engine: Engine) -> None:
    for path, headers in (("/healthz", {}), ("/nowhere", {}), ("/sign-in", {}), ("/nowhere", bearer(engine))):
        answer = client.get(path, headers=headers)
        policy = answer.headers["content-security-policy"]
        assert "script-src 'self';" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


def test_errors_are_problems(client: TestClient, engine: Engine) -> None:
    headers = bearer(engine)
    for method, path, status, code in (
        ("GET", "/nowhere", 404, "not_found"),
        ("DELETE", "/v1/openapi.json", 405, "method_not_allowed"),
        ("POST", "/sign-in", 422, "invalid"),
    ):
        answer = client.request(method, path, headers=headers)
        assert answer.headers["content-type"] == "application/problem+json"
        told = answer.json()
        assert (answer.status_code, told["status"], told["code"]) == (status, status, code)
        assert told["type"] == f"urn:kontext:problem:{code}" and told["title"] and told["detail"]
    assert client.post("/sign-in", data={"secret": "s3cret" * 100}).text.count("s3cret") == 0


def test_an_unexpected_error_tells_a_number_and_no_more(app: FastAPI, client: TestClient, engine: Engine) -> None:
    def fail() -> None:
        raise RuntimeError("secret thing")

    app.state.resources.sessions.__dict__["check"] = lambda value: fail()
    name = app.state.resources.sessions.cookie_name
    answer = client.get("/v1/openapi.json", headers={"cookie": f"{name}=x"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "secret thing" not in answer.text and "number" in answer.json()["detail"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_body_too_large_is_refused(client: TestClient) -> None:
    answer = client.post("/sign-in", data={"secret": "x" * (1 << 20)})
    assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")


def test_a_caller_who_asks_too_often_is_told_when_to_come_back(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Buckets.__init__, "__defaults__", (lambda: 1000.0,))  # no time passes
    url = engine.url.render_as_string(hide_password=False)
    settings = Settings(home=tmp_path, database_url=url, broker_url=BROKER, api_requests_per_s=0.5)
    with TestClient(build_app(settings)) as client:
        first, second = bearer(engine), bearer(engine)
        statuses = [client.get("/v1/openapi.json", headers=first).status_code for _ in range(4)]
        assert statuses == [200, 200, 429, 429]
        refused = client.get("/v1/openapi.json", headers=first)
        assert int(refused.headers["retry-after"]) == 2
        assert client.get("/v1/openapi.json", headers=second).status_code == 200


def test_links_are_guessed_as_slowly_as_keys(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Buckets.__init__, "__defaults__", (lambda: 1000.0,))  # no time passes
    monkeypatch.setattr(access, "STRANGER_BURST", 3.0)
    guess = f"ot_{'0' * 12}_{'x' * 43}"
    url = engine.url.render_as_string(hide_password=False)
    with TestClient(build_app(Settings(home=tmp_path, database_url=url, broker_url=BROKER))) as client:
        asked = [f"/sign-in?token={guess}", f"/sign-in?next=/&%74oken={guess}"] * 2
        assert [client.get(path).status_code for path in asked] == [401, 401, 401, 429]
        assert client.post("/sign-in", data={"secret": guess}).status_code == 429
        assert [client.get("/sign-in?next=/").status_code for _ in range(5)] == [200] * 5


def test_the_audit_log_lists_the_newest_changes_first(engine: Engine) -> None:
    with engine.begin() as connection:
        for target in ("a", "b", "a"):
            queries.record_audit(connection, caller="key:1", action="batch.pause", target=target, detail={"n": 1})
    with reading(engine).connect() as connection:
        newest = queries.list_audit(connection, limit=2)
        assert [entry.target for entry in newest] == ["a", "b"] and newest[0].detail == {"n": 1}
        assert [entry.id for entry in queries.list_audit(connection, limit=5, before=newest[0].id, targets=["a"])] == [
            1
        ]
