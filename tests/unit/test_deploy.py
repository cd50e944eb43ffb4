"""The deployment files against what they deploy: commands, variables, ports, copied paths, and the published schema."""

import asyncio
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import uvicorn
import yaml
from fastapi.routing import iter_route_contexts
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from orchestrator.access.scopes import Scope
from orchestrator.api import health
from orchestrator.api.app import serve
from orchestrator.cli import app
from orchestrator.settings import FOREIGN, PREFIX, Settings, read_settings
from orchestrator.state.transitions import Stage

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SCHEMA = ROOT / "tests" / "data" / "compose-spec.json"
DOCKERFILES = sorted(DEPLOY.glob("*.Dockerfile"))
VARIABLES = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields} | FOREIGN
INTERPOLATION = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


@pytest.fixture(scope="module")
def text() -> str:
    return (DEPLOY / "compose.yaml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def compose(text: str) -> dict[str, Any]:
    return yaml.safe_load(text)


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    return compose["services"]


def ours(services: dict[str, Any]) -> dict[str, Any]:
    return {name: service for name, service in services.items() if "build" in service}


def parse(words: Sequence[str]) -> dict[str, Any]:
    """Parse a `kontext` command with the parsers that run it, and run nothing. Raises what a wrong call raises."""
    command, name, context, rest = typer.main.get_command(app), "kontext", None, list(words)
    while True:
        context = command.make_context(name, rest, parent=context)
        if not hasattr(command, "resolve_command"):
            return context.params
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])


def instructions(dockerfile: Path) -> Iterator[tuple[str, str]]:
    lines = [line for line in dockerfile.read_text().splitlines() if not line.startswith("#")]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if line.strip():
            keyword, _, rest = line.strip().partition(" ")
            yield keyword, rest.strip()


def environment_of(dockerfile: Path) -> dict[str, str]:
    pairs = (word.partition("=") for keyword, rest in instructions(dockerfile) if keyword == "ENV"
             for word in shlex.split(rest))  # fmt: skip
    return {name: value for name, _, value in pairs}


def example() -> dict[str, str]:
    lines = (DEPLOY / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def interpolate(value: str, environment: dict[str, str]) -> str:
    return INTERPOLATION.sub(lambda m: environment.get(m[1]) or (m[3] if m[2] == "-" else ""), value)


def test_the_compose_file_is_one(compose: dict[str, Any]) -> None:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator(schema).validate(compose)


def test_the_topology_is_the_designs(services: dict[str, Any]) -> None:
    assert set(services) >= {"postgres", "broker", "cache", "s3", "migrate", "serve", "dispatch"}
    assert services["dispatch"]["deploy"]["replicas"] == 2
    stages = [
        parse(service["command"])["stages"] for service in services.values() if "worker" in service.get("command", "")
    ]
    assert sorted(stages) == sorted(Stage)
    for name in ("broker", "cache"):
        assert "--maxmemory-policy noeviction" in services[name]["command"]
    assert "--appendonly yes" in services["broker"]["command"]


def test_every_command_is_one_of_the_command_lines(services: dict[str, Any]) -> None:
    commands = [service["command"] for service in ours(services).values() if "command" in service]
    for dockerfile in DOCKERFILES:
        given = dict(instructions(dockerfile))
        assert json.loads(given["ENTRYPOINT"]) == ["kontext"]
        commands.append(json.loads(given["CMD"]))
    assert len(commands) == 8
    for command in commands:
        parse(command)


@pytest.mark.parametrize("words", [["serv"], ["serve", "--prt", "1"], ["serve", "--port", "no"], ["db", "downgrade"]])
def test_a_wrong_command_would_be_noticed(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"No such|valid integer"):
        parse(words)


def test_the_readmes_commands_are_real(services: dict[str, Any], text: str) -> None:
    readme = (DEPLOY / "README.md").read_text()
    calls = re.findall(r"docker compose --file deploy/compose.yaml run --rm (\w+) (.+)", readme + text)
    assert len(calls) == 3
    for service, words in calls:
        assert service in services
        parse(shlex.split(words))
    assert set(re.findall(r"\bKONTEXT_\w+", readme)) - {"KONTEXT_"} <= VARIABLES


def test_every_variable_is_a_setting(services: dict[str, Any]) -> None:
    given = {name for service in services.values() for name in service.get("environment", {})}
    for dockerfile in DOCKERFILES:
        given |= set(environment_of(dockerfile))
        given |= {rest.partition("=")[0] for keyword, rest in instructions(dockerfile) if keyword == "ARG"}
    assert {name for name in given if name.startswith(PREFIX)} <= VARIABLES


def test_the_processes_would_read_their_settings_and_need_no_embedded_server(services: dict[str, Any]) -> None:
    filled = example() | {name: "filled" for name, value in example().items() if not value}
    read = set()
    for service in ours(services).values():
        environment = {name: interpolate(value, filled) for name, value in service["environment"].items()}
        read.add(read_settings({name: value for name, value in environment.items() if name.startswith(PREFIX)}))
    assert len(read) == 1, "a batch is pinned to the numerics of who submits it"
    (settings,) = read
    assert settings.embedded == frozenset()
    assert settings.database_url == "postgresql+psycopg://kontext:filled@postgres:5432/kontext"
    assert settings.unit_size == 1
    mounted = {volume.split(":")[-2] for service in ours(services).values() for volume in service["volumes"][1:]}
    assert mounted == {settings.checkpoint}


def test_every_interpolated_variable_is_explained_and_none_is_left_over(text: str) -> None:
    assert {match[0] for match in INTERPOLATION.findall(text)} == set(example())
    must_be_given = {name for name, kind, _ in INTERPOLATION.findall(text) if kind == "?"}
    assert {name for name, value in example().items() if not value} - {
        "ALLOWED_HOSTS",
        "PIP_EXTRA_INDEX_URL",
    } <= must_be_given


def test_no_secret_has_a_default(text: str) -> None:
    secrets = re.compile("PASSWORD|SECRET|KEY")
    for name, kind, default in INTERPOLATION.findall(text):
        assert not secrets.search(name) or kind == "?", f"{name} would start with {default!r}"
    assert not [name for name, value in example().items() if secrets.search(name) and value]
    # What stands beside a word for a secret is taken from the environment.
    stated = re.findall(r"(?:PASSWORD|SECRET\w*|AUTH|requirepass)[:=]? +(\S+)", text)
    in_urls = re.findall(r"://\w*:([^@\n]+)@", text)
    assert len(stated) > 5 and len(in_urls) == 3
    for given in stated + in_urls:
        assert given.startswith("${")


def test_hosts_and_ports_are_those_of_the_services(services: dict[str, Any], text: str) -> None:
    listens = {
        "postgres": 5432,
        "broker": 6379,
        "cache": 6379,
        "s3": 8333,
        "serve": parse(services["serve"]["command"])["port"],
    }
    named = re.findall(r"(?:@|//)(\w+):(\d+)", text)
    assert {host for host, _ in named} >= {"postgres", "broker", "cache", "s3"}
    for host, port in named:
        if host in services:
            assert listens[host] == int(port)
    assert "-s3.port=8333" in services["s3"]["command"]
    health = " ".join(services["serve"]["healthcheck"]["test"])
    assert f"127.0.0.1:{listens['serve']}/readyz" in health
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published == [f"127.0.0.1:{listens['serve']}:{listens['serve']}"]
    control = dict(instructions(DEPLOY / "control.Dockerfile"))
    assert int(control["EXPOSE"]) == listens["serve"] == parse(json.loads(control["CMD"]))["port"]
    assert "/readyz" in {route.path for route in api_routes()}


def test_the_api_believes_the_proxy_of_whom_it_asks_for_and_nobody_else(
    services: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "FORWARDED_ALLOW_IPS"
    monkeypatch.setenv(name, services["serve"]["environment"][name])
    configured: list[uvicorn.Config] = []

    class Server:
        started = False

        def __init__(self, config: uvicorn.Config) -> None:
            configured.append(config)

        async def serve(self) -> None:
            pass

    monkeypatch.setattr(uvicorn, "Server", Server)
    serve(Settings(database_url="sqlite://", broker_url="redis://127.0.0.1:1/0"), "0.0.0.0", 0)
    (config,) = configured
    assert config.proxy_headers
    seen: list[tuple[str, str]] = []

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["client"][0], scope["scheme"]))

    behind = ProxyHeadersMiddleware(answer, config.forwarded_allow_ips)
    headers = [(b"x-forwarded-proto", b"https"), (b"x-forwarded-for", b"198.51.100.6, 203.0.113.7")]
    for asking in ("172.18.0.1", "203.0.113.9"):  # the gateway of compose's network; somebody else
        scope: Any = {"type": "http", "scheme": "http", "client": (asking, 1), "headers": headers}
        asyncio.run(behind(scope, None, None))  # type: ignore[arg-type]
    assert seen == [("203.0.113.7", "https"), ("203.0.113.9", "http")], "the one that the proxy added, not the caller"


def api_routes() -> list[Any]:
    from fastapi.routing import iter_route_contexts

    from orchestrator.api.app import build_app

    app = build_app(Settings(database_url="sqlite://", broker_url="redis://127.0.0.1:1/0"))
    return list(iter_route_contexts(app.routes))


def test_everyone_waits_for_whom_they_need_and_is_started_again(services: dict[str, Any]) -> None:
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in services
            if how["condition"] == "service_healthy":
                assert services[needed]["healthcheck"]["test"]
        if name != "cli":
            assert service["restart"] in {"unless-stopped", "on-failure"}
        if name in {"serve", "dispatch", *Stage}:
            assert service["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    for stage in Stage:
        assert services[stage]["stop_grace_period"] == "1m"


def test_our_containers_have_no_rights_they_do_not_need(compose: dict[str, Any]) -> None:
    for service in ours(compose["services"]).values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["init"] is True, "a worker's guard outlives it for a moment, and the first process must reap it"
        home, checkpoint = service["volumes"]
        assert home.split(":")[0] in compose["volumes"]
        assert checkpoint.endswith(":ro")


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_copies_what_there_is_and_runs_as_nobody_special(dockerfile: Path) -> None:
    steps = list(instructions(dockerfile))
    copied = [
        words for keyword, rest in steps if keyword == "COPY" and not (words := rest.split())[0].startswith("--from")
    ]
    sources = {source for words in copied for source in words[:-1]}
    for source in sources:
        assert (ROOT / source).exists(), source
        assert (ROOT / source).is_dir() == source.endswith("/")
    packages = re.search(r"packages = \[(.*)\]", (ROOT / "pyproject.toml").read_text())
    assert {f"{name}/" for name in re.findall(r'"(\w+)"', packages[1])} <= sources
    ignore = (DEPLOY / f"{dockerfile.name}.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignore if line.startswith("!")} == sources
    assert [rest for keyword, rest in steps if keyword == "USER"] == ["kontext"]
    assert steps.index(("USER", "kontext")) > max(
        i for i, (keyword, _) in enumerate(steps) if keyword in {"RUN", "COPY"}
    )
    home = environment_of(dockerfile)["KONTEXT_HOME"]
    assert ("WORKDIR", home) in steps
    assert f"--home-dir {home} kontext" in dockerfile.read_text()


def test_the_control_plane_has_no_torch() -> None:
    steps = " ".join(rest for keyword, rest in instructions(DEPLOY / "control.Dockerfile") if keyword == "RUN")
    assert "torch" not in steps and "[worker]" not in steps
    worker = (DEPLOY / "worker.Dockerfile").read_text()
    assert "ARG EXTRAS=worker\n" in worker and '".[${EXTRAS}]"' in worker


def test_compose_builds_the_images_that_there_are(services: dict[str, Any]) -> None:
    built = {
        (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).resolve()
        for service in ours(services).values()
    }
    assert built == set(DOCKERFILES)
    arguments = {name for service in ours(services).values() for name in service["build"].get("args", {})}
    declared = {
        rest.partition("=")[0] for keyword, rest in instructions(DEPLOY / "worker.Dockerfile") if keyword == "ARG"
    }
    assert arguments <= declared


def test_the_filled_in_secrets_stay_out_of_git_and_of_the_images() -> None:
    assert ".env" in (DEPLOY / ".gitignore").read_text().splitlines()
    for dockerfile in DOCKERFILES:
        assert (DEPLOY / f"{dockerfile.name}.dockerignore").read_text().splitlines()[1] == "*"


def test_prometheus_asks_a_service_there_is_with_a_key_from_a_file(services: dict[str, Any]) -> None:
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text(encoding="utf-8"))["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    name, port = target.split(":")
    command = services[name]["command"]
    assert command[0] == "serve" and port in {str(word) for word in command}
    assert job["metrics_path"] in {context.path for context in iter_route_contexts([*health.router.routes])}
    assert job["authorization"] == {"type": "Bearer", "credentials_file": "/etc/prometheus/kontext.key"}
    (line,) = re.findall(r"run --rm --no-TTY cli (.*?) \|", (DEPLOY / "README.md").read_text(encoding="utf-8"))
    asked = parse(shlex.split(line))
    assert (asked["name"], asked["scope"], asked["server"]) == ("prometheus", Scope.READ, None)
