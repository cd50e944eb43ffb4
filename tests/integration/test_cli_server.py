"""The command line at a server: it shows what it shows here, letter by letter, and says what it cannot do there."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text
from typer.testing import CliRunner, Result

from orchestrator import control, schedules, webhooks
from orchestrator.access.scopes import Scope
from orchestrator.cli import app
from orchestrator.schedules import Plan
from orchestrator.state import queries
from orchestrator.state.database import open_database, reading
from orchestrator.state.migration import upgrade
from orchestrator.state.queries import access
from orchestrator.state.transitions import BatchStatus, Event
from tests.integration.seeding import Seeder
from tests.integration.shop import photo
from tests.integration.site import Site, open_site
from tests.integration.test_client import finish

LISTINGS: tuple[tuple[str, ...], ...] = (
    ("batches",),
    ("batches", "--limit", "1"),
    ("show", "b"),
    ("show", "done"),
    ("jobs", "done"),
    ("jobs", "done", "--state", "failed", "--state", "succeeded"),
    ("jobs", "b"),
    ("workers",),
    ("presets",),
    ("key", "list"),
    ("schedule", "list"),
    ("schedule", "show", "nightly"),
    ("schedule", "show", "paused"),
    ("webhook", "list"),
    ("webhook", "deliveries"),
    ("webhook", "deliveries", "--state", "pending", "--limit", "1"),
)
REFUSED: tuple[tuple[str, ...], ...] = (
    ("show", "none"),
    ("jobs", "none"),
    ("pause", "none"),
    ("pause", "done"),
    ("export", "none", "out"),
    ("key", "revoke", "none"),
    ("key", "add", ""),
    ("schedule", "show", "none"),
    ("schedule", "add", "nightly", "--cron", "0 2 * * *", "--catalogue", "s3://a/b.csv", "--preset", "flat-lay"),
    ("schedule", "add", "x", "--cron", "61 * * * *", "--catalogue", "s3://a/b.csv", "--preset", "flat-lay"),
    ("webhook", "add", "https://shop.example.com/", "--events", "batch.exploded"),
    ("webhook", "deliveries", "--show", "999"),
    ("submit", "nowhere.csv", "--preset", "flat-lay"),
    ("submit", "rows.csv"),
)


WORKER = {
    "id": "w",
    "host": "h",
    "pid": 1,
    "stages": "encode,sample",
    "device": "cpu",
    "revision": "r",
    "numerics": "n",
}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server with some of everything in its database."""
    folder = tmp_path_factory.mktemp("site")
    postgres = request.param == "postgresql"
    url = request.getfixturevalue("module_database_url") if postgres else f"sqlite:///{folder / 'state.db'}"
    engine = open_database(url)
    upgrade(engine)
    with open_site(engine, folder, webhook_hosts="*") as site, pytest.MonkeyPatch.context() as patch:
        patch.setattr(access, "USED_S", 3600.0)  # the use of a key is noted once, not between two looks at it
        fill(site)
        yield site
    engine.dispose()


@pytest.fixture(scope="module")
def module_database_url(postgres_url: str) -> Iterator[str]:
    engine = open_database(postgres_url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("DROP DATABASE IF EXISTS test_cli_server WITH (FORCE)"))
        connection.execute(text("CREATE DATABASE test_cli_server"))
        yield engine.url.set(database="test_cli_server").render_as_string(hide_password=False)
        connection.execute(text("DROP DATABASE test_cli_server WITH (FORCE)"))
    engine.dispose()


def fill(site: Site) -> None:
    seed = Seeder(site.engine)
    webhook = webhooks.add(site.engine, "https://shop.example.com/?token=S3cret", list(Event)[:3], site.settings)
    webhooks.test(site.engine, webhook.webhook.id)
    seed.batch(
        "done",
        jobs=3,
        priorities=[0, 0, 5],
        results_uri=f"{site.settings.results_uri}/done",
        catalogue="https://a.example/c.csv?token=x",
    )
    finish(site, "done")
    seed.batch("b", jobs=2)
    control.pause(site.engine, "b")
    for name in ("nightly", "paused"):
        schedules.add(
            site.engine, Plan(name, "0 2 * * *", "s3://a/c.csv", "Asia/Shanghai", {"steps": 3}), site.settings
        )
    schedules.pause(site.engine, "paused")
    schedules.fire(site.engine, "nightly")
    seed.do(queries.register_worker, WORKER)


@pytest.fixture(autouse=True)
def place(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("KONTEXT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("image\na.jpg\n")
    return tmp_path


def here(site: Site, *arguments: str) -> Result:
    """A command on the machine of the server, by its settings."""
    return CliRunner().invoke(app, arguments, env=site.settings.environment())


def there(site: Site, *arguments: str, scope: Scope = Scope.ADMIN) -> Result:
    """The same from elsewhere."""
    return CliRunner().invoke(app, [*arguments, "--server", site.url], env={"KONTEXT_API_KEY": site.keys[scope]})


@pytest.mark.parametrize("arguments", LISTINGS, ids=" ".join)
@pytest.mark.parametrize("form", [(), ("--json",)], ids=["text", "json"])
def test_what_is_shown_is_the_same(site: Site, arguments: tuple[str, ...], form: tuple[str, ...]) -> None:
    there(site, "key", "list")  # the use of the key is noted
    local, remote = here(site, *arguments, *form), there(site, *arguments, *form)
    assert (remote.exit_code, remote.stdout) == (local.exit_code, local.stdout) == (0, local.stdout), remote.output
    assert len(local.stdout.strip()) > 2 and "S3cret" not in local.stdout
    if form:
        for line in local.stdout.splitlines():
            json.loads(line)


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_what_is_refused_is_refused_alike(site: Site, arguments: tuple[str, ...]) -> None:
    local, remote = here(site, *arguments), there(site, *arguments)
    assert remote.exit_code == local.exit_code == 2, (local.output, remote.output)
    assert remote.stdout == local.stdout == "" and remote.stderr.startswith("kontext: ")
    if not remote.stderr.startswith("kontext: body."):  # told by the shape of the body, before it is read
        # The first words say what is wrong; what to do about it may differ.
        assert remote.stderr.split()[:4] == local.stderr.split()[:4]


def test_a_batch_goes_its_way_from_elsewhere(site: Site, place: Path) -> None:
    for colour in ("red", "blue", "green"):
        (place / f"{colour}.jpg").write_bytes(photo(colour))
    (place / "c.csv").write_text("image,custom_id\nred.jpg,d0\nblue.jpg,d1\ngreen.jpg,d2\n,bad\n")
    dry = there(site, "submit", "c.csv", "--preset", "flat-lay", "--dry-run", scope=Scope.SUBMIT)
    assert dry.exit_code == 3 and "4 rows: 3 good, 1 bad, 1 recipe; no batch was made" in dry.stdout
    fetched = there(site, "run", "c.csv", "--preset", "flat-lay", "--out", "out", "--dry-run", scope=Scope.SUBMIT)
    assert fetched.exit_code == 3 and fetched.stdout == dry.stdout and not (place / "out").exists()
    sent = there(site, "submit", "c.csv", "--preset", "flat-lay", "--set", "steps=3", scope=Scope.SUBMIT)
    assert sent.exit_code == 0 and "4 rows stored, 1 bad" in sent.stdout
    batch_id = sent.stdout.split()[-1]
    assert "3 sent" in sent.stderr and "of" in sent.stderr
    assert json.loads(here(site, "show", batch_id, "--json").stdout)["options"] == {"preset": "flat-lay", "steps": 3}
    assert "has priority 5" in there(site, "priority", batch_id, "5").stdout
    assert json.loads(there(site, "pause", batch_id, "--json").stdout)["status"] == "paused"
    assert "runs again" in there(site, "resume", batch_id).stdout
    finish(site, batch_id)
    out = there(site, "export", batch_id, "out", scope=Scope.READ)
    assert out.exit_code == 0 and ": 3 copied, 0 there already, 0 failed" in out.stdout
    assert {path.name for path in (place / "out").iterdir()} >= {"d1.png", "manifest.csv", "manifest.jsonl"}
    assert "there already" in here(site, "export", batch_id, "out").stdout
    assert "1 jobs are pending again" in there(site, "retry", batch_id, "--code", "unavailable").stdout
    assert "is being cancelled" in there(site, "cancel", batch_id).stdout


def test_a_run_waits_fetches_and_goes_on_with_its_batch(site: Site, place: Path) -> None:
    for colour in ("red", "blue"):
        (place / f"{colour}.jpg").write_bytes(photo(colour))
    (place / "night.csv").write_text("image\nred.jpg\nblue.jpg\n")
    call = ("run", "night.csv", "--preset", "flat-lay", "--out", "pictures", "--json")
    with meanwhile(site, "sent:night.csv", lambda batch_id: control.pause(site.engine, batch_id)):
        paused = there(site, *call, scope=Scope.SUBMIT)
    told = json.loads(paused.stdout)
    assert (paused.exit_code, told["status"], told["total"]) == (3, "paused", 2), paused.output
    control.resume(site.engine, told["batch"])
    with meanwhile(site, "sent:night.csv", lambda batch_id: finish(site, batch_id)):
        ended = there(site, *call, scope=Scope.SUBMIT)
    again = json.loads(ended.stdout)
    assert (ended.exit_code, again["batch"], again["status"]) == (3, told["batch"], "completed"), ended.output
    assert again["errors"] == [{"custom_id": "red", "line": 2, "code": "unavailable", "message": "no answer"}]
    assert (place / "pictures" / again["batch"] / "blue.png").read_bytes() == b"picture of blue"
    assert "failed: red: unavailable: no answer" in ended.stderr
    assert list((place / ".kontext" / "submissions").iterdir()) == []


@contextmanager
def meanwhile(site: Site, catalogue: str, do: Callable[[str], object]) -> Iterator[None]:
    """Do something to the running batch of a catalogue, once there is one, beside the block."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            with reading(site.engine).connect() as connection:
                found = queries.list_batches(connection, limit=50, statuses=[BatchStatus.RUNNING])
            for batch in found:
                if batch.catalogue == catalogue:
                    do(batch.id)
                    return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_keys_schedules_and_webhooks_are_kept_from_elsewhere(site: Site) -> None:
    secret = there(site, "key", "add", "shop", "--scope", "read").stdout.split()[-1]
    assert CliRunner().invoke(app, ["batches", "--server", site.url, "--key", secret]).exit_code == 0
    key_id = secret.split("_")[1]
    assert "is revoked" in there(site, "key", "revoke", key_id).stdout
    assert "was revoked before" in there(site, "key", "revoke", key_id).stdout
    stranger = CliRunner().invoke(app, ["batches", "--server", site.url, "--key", secret])
    assert stranger.exit_code == 2 and "does not know this key" in stranger.stderr and secret not in stranger.output
    made = there(
        site, "schedule", "add", "hourly", "--cron", "0 * * * *", "--catalogue", "s3://a/c.csv", "--preset", "flat-lay"
    )
    assert "fires first at" in made.stdout
    assert "is due" in there(site, "schedule", "fire", "hourly", scope=Scope.SUBMIT).stdout
    assert "paused" in there(site, "schedule", "pause", "hourly").stdout
    assert "fires next" in there(site, "schedule", "resume", "hourly").stdout
    assert "is removed" in there(site, "schedule", "remove", "hourly").stdout
    told = json.loads(
        there(site, "webhook", "add", "https://a.example.com/", "--events", "batch.failed", "--json").stdout
    )
    assert told["secret"].startswith("whsec_")
    tested = there(site, "webhook", "test", told["id"], "--wait", "0")
    assert tested.exit_code == 1 and "does a dispatcher run?" in tested.stdout
    assert json.loads(there(site, "webhook", "rotate", told["id"], "--json").stdout)["secret"] != told["secret"]
    delivery = json.loads(there(site, "webhook", "deliveries", told["id"], "--json").stdout)[0]["delivery"]
    assert "once more" in there(site, "webhook", "replay", str(delivery)).stdout
    assert "is removed" in there(site, "webhook", "remove", told["id"]).stdout


def test_a_small_scope_is_told_what_it_lacks(site: Site, place: Path) -> None:
    for arguments in (("submit", "rows.csv", "--preset", "flat-lay"), ("pause", "b"), ("key", "list")):
        refused = there(site, *arguments, scope=Scope.READ)
        assert refused.exit_code == 2 and "needs a key of scope" in refused.stderr, refused.output


def test_the_doctor_looks_at_the_server(site: Site) -> None:
    Seeder(site.engine).do(queries.register_worker, WORKER | {"id": "alive"})  # the other may be silent for long by now
    told = json.loads(there(site, "doctor", "--json", scope=Scope.READ).stdout)
    assert {check["check"]: check["result"] for check in told["checks"]} == {
        "server": "ok", "database": "ok", "broker": "fail", "key": "ok", "workers": "ok",
    }  # fmt: skip
    gone = CliRunner().invoke(app, ["doctor", "--server", "http://127.0.0.1:1", "--key", "k"])
    assert gone.exit_code == 1 and "does not answer" in gone.stdout


def test_what_needs_this_machine_says_so(site: Site) -> None:
    for arguments in (("up",), ("serve",), ("dispatch",), ("worker",), ("db", "upgrade")):
        refused = CliRunner().invoke(app, [*arguments, "--server", site.url])
        assert refused.exit_code == 2 and "on this machine alone" in refused.stderr, refused.output
    out = there(site, "submit", "rows.csv", "--preset", "flat-lay", "--out", "x")
    assert out.exit_code == 2 and "kontext export ID DIR" in out.stderr
    sheet = there(site, "run", "rows.csv", "--preset", "flat-lay", "--sheet", "x.png")
    assert sheet.exit_code == 2 and "this machine alone" in sheet.stderr
    keyless = CliRunner().invoke(app, ["batches", "--server", site.url])
    assert keyless.exit_code == 2 and "set KONTEXT_API_KEY" in keyless.stderr
