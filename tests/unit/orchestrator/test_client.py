"""The client's wire: what is tried again and what is not, how errors read, and that the key stays where it belongs."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from orchestrator.access.scopes import Scope
from orchestrator.catalogs import Problem, Row
from orchestrator.catalogs.relayed import Relayed, write_header, write_row
from orchestrator.client import ApiError, Asked, Client, Memory, transport
from orchestrator.client.transport import read_server
from workers.source import SourceError, check_digest

SECRET = "kx_0123456789ab_secret"
KEY = {"id": "k", "name": "n", "scope": "read", "created_at": 1, "last_used_at": None, "revoked_at": None}
PAGE = {"data": [], "has_more": False, "next": None}
Answer = httpx2.Response | Exception


@pytest.fixture(autouse=True)
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which take no time here."""
    pauses: list[float] = []
    monkeypatch.setattr(transport.time, "sleep", pauses.append)
    return pauses


class Server:
    """Answers in turn, and keeps what it was asked."""

    def __init__(self, *answers: Answer) -> None:
        self.answers, self.asked = list(answers), list[httpx2.Request]()

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def ask(server: Callable[[httpx2.Request], httpx2.Response], patience_s: float = 60.0) -> Client:
    http = httpx2.Client(transport=httpx2.MockTransport(server), base_url="http://server")
    return Client("http://server", SECRET, patience_s=patience_s, http=http)


def ok(body: Any = PAGE) -> httpx2.Response:
    return httpx2.Response(200, json=body)


def problem(status: int, code: str = "x", **headers: str) -> httpx2.Response:
    body = {"type": "t", "title": "T", "status": status, "code": code, "detail": f"told {code}", "more": 1}
    return httpx2.Response(status, json=body, headers=headers)


class TestTryingAgain:
    def test_a_busy_server_is_asked_again_when_it_says(self, waited: list[float]) -> None:
        server = Server(problem(429, **{"retry-after": "7"}), problem(503), ok())
        with ask(server) as client:
            assert client.presets() == []
        assert len(server.asked) == 3 and waited[0] == 7.0 and 0 < waited[1] < 2

    def test_patience_ends(self, waited: list[float]) -> None:
        server = Server(problem(503, "unavailable", **{"retry-after": "90"}))
        with ask(server) as client, pytest.raises(ApiError, match="told unavailable") as caught:
            client.presets()
        assert (caught.value.status, caught.value.code, waited) == (503, "unavailable", [])
        assert str(caught.value).endswith("(GET /v1/presets: 503, unavailable)") and not caught.value.callers_fault

    @pytest.mark.parametrize("lost", [httpx2.ReadError("cut"), httpx2.RemoteProtocolError("gone"), problem(503)])
    def test_what_must_not_be_done_twice_is_asked_once(self, lost: Answer) -> None:
        server = Server(lost, ok(KEY | {"secret": "s"}))
        with ask(server) as client, pytest.raises(ApiError):
            client.add_key("n", Scope.READ)
        assert len(server.asked) == 1

    @pytest.mark.parametrize("never_done", [httpx2.ConnectError("refused"), problem(429)])
    def test_it_is_asked_again_where_nothing_was_done(self, never_done: Answer) -> None:
        server = Server(never_done, ok(KEY | {"secret": "s"}))
        with ask(server) as client:
            assert client.add_key("n", Scope.READ).secret == "s"

    def test_a_wrong_call_is_not_made_again(self) -> None:
        server = Server(problem(404, "not_found"))
        with ask(server) as client, pytest.raises(ApiError, match=r"^told not_found$") as caught:
            client.batch("b")
        assert caught.value.callers_fault and caught.value.where == "GET /v1/batches/b"

    def test_a_submission_waits_for_its_own_earlier_try_with_one_key_and_whole_rows(self) -> None:
        server = Server(httpx2.ReadTimeout("late"), problem(409, "conflict"), problem(422, "bad"))
        with ask(server) as client, pytest.raises(ApiError, match="told bad"):
            client.submit([{"image": "s3://a/1.jpg"}], Asked(preset="flat-lay"))
        assert len({request.headers["idempotency-key"] for request in server.asked}) == 1
        bodies = [request.read() for request in server.asked]
        assert len(set(bodies)) == 1
        assert json.loads(bodies[0]) == {"preset": "flat-lay", "priority": 0, "items": [{"image": "s3://a/1.jpg"}]}

    def test_a_server_that_is_not_there_is_named(self) -> None:
        with Client("http://127.0.0.1:1", SECRET, patience_s=0) as client, pytest.raises(ApiError) as caught:
            client.presets()
        assert (caught.value.status, caught.value.code) == (None, "unreachable")
        assert "http://127.0.0.1:1 does not answer" in str(caught.value) and "check the address" in str(caught.value)


class TestAnswers:
    def test_pages_are_read_to_the_last(self) -> None:
        preset = {"name": "p", "summary": "", "prompt": "", "negative_prompt": None, "options": {}, "newer": 1}
        server = Server(
            ok({"data": [preset], "has_more": True, "next": "c"}), ok({"data": [preset], "has_more": False})
        )
        with ask(server) as client:
            assert [found.name for found in client.presets()] == ["p", "p"]
        assert [request.url.params.get("after") for request in server.asked] == [None, "c"]

    def test_what_is_no_answer_of_ours_is_told_as_such(self) -> None:
        with ask(Server(httpx2.Response(502, text="<html>Bad Gateway"))) as client, pytest.raises(ApiError) as caught:
            client.presets()
        assert caught.value.code == "no_problem_details" and "502" in str(caught.value)
        with ask(Server(ok({"data": [{"name": 1}], "has_more": False}))) as client, pytest.raises(ApiError) as caught:
            client.presets()
        assert caught.value.code == "bad_answer" and "do client and server fit?" in str(caught.value)

    @pytest.mark.parametrize("name", ["..", ".", ""])
    def test_a_name_leads_to_no_other_path(self, name: str) -> None:
        with ask(Server()) as client, pytest.raises(ApiError, match="no name"):
            client.batch(name)

    def test_names_are_quoted(self) -> None:
        server = Server(problem(404))
        with ask(server) as client, pytest.raises(ApiError):
            client.schedule("a/../../v1/keys?x#y")
        assert server.asked[0].url.raw_path == b"/v1/schedules/a%2F..%2F..%2Fv1%2Fkeys%3Fx%23y"


class TestTheKey:
    def test_it_is_sent_to_its_server_and_shown_nowhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[httpx2.Request] = []

        def answer(request: httpx2.Request) -> httpx2.Response:
            seen.append(request)
            moved = httpx2.Response(302, headers={"location": "https://store.example.com/a.png"})
            return moved if request.url.host == "server" else httpx2.Response(200, content=b"png")

        with ask(answer) as client:
            monkeypatch.setattr(client._transport, "_store", httpx2.Client(transport=httpx2.MockTransport(answer)))
            job: Any = type("Job", (), {"id": 1})()
            assert client.picture(job) == b"png"
            assert SECRET not in repr(client)
        assert [SECRET in str(request.headers.raw) for request in seen] == [True, False]

    @pytest.mark.parametrize("address", ["", "ftp://x", "http://", "https://me:secret@x", "http://x:y", "http://x?k=1"])
    def test_what_is_no_address_is_refused(self, address: str) -> None:
        with pytest.raises(ApiError, match="no server's address") as caught:
            read_server(address)
        assert "secret" not in str(caught.value)

    def test_addresses_are_read_as_people_write_them(self) -> None:
        assert read_server(" https://kontext.example.com/ ") == "https://kontext.example.com"
        assert read_server("localhost:8080") == "http://localhost:8080"


class TestMemory:
    def keep(self, memory: Memory, rows: str = "r", asked: Asked = Asked(), error: BaseException | None = None) -> str:
        try:
            with memory.keep("http://server", rows, asked) as key:
                if error is not None:
                    raise error
        except (KeyboardInterrupt, ApiError):
            pass
        return key

    def test_a_key_is_kept_until_all_went_well(self, tmp_path: Path) -> None:
        memory = Memory(tmp_path / "keys")
        first = self.keep(memory, error=KeyboardInterrupt())
        assert self.keep(Memory(tmp_path / "keys"), error=ApiError("", where="", code="unreachable")) == first
        for status in (401, 403, 409):
            assert self.keep(memory, error=ApiError("", where="", code="in_doubt", status=status)) == first
        assert self.keep(memory, rows="others") != first and self.keep(memory, asked=Asked(priority=1)) != first
        assert self.keep(memory) == first and self.keep(memory) != first

    def test_a_refused_call_leaves_none(self, tmp_path: Path) -> None:
        memory = Memory(tmp_path / "keys")
        refused = self.keep(memory, error=ApiError("", where="", code="bad", status=422))
        assert self.keep(memory) != refused

    def test_a_run_keeps_it_until_its_batch_has_ended(self, tmp_path: Path) -> None:
        memory = Memory(tmp_path, until_forgotten=True)
        first = self.keep(memory)
        assert self.keep(Memory(tmp_path, until_forgotten=True)) == first
        memory.forget()
        assert self.keep(memory) != first


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Callable[..., Relayed]]:
    def write(rows: list[tuple[Row, str | None]], columns: tuple[str, ...] = ("image", "note")) -> Relayed:
        path = tmp_path / "rows"
        with path.open("w", encoding="utf-8", newline="\n") as file:
            write_header(file, columns, ("a warning",))
            for row, sent in rows:
                write_row(file, row, sent)
        return Relayed(path, "c.csv", "/inputs")

    yield write


def test_rows_come_out_as_they_went_in(relay: Callable[..., Relayed]) -> None:
    sent = "0" * 64 + ".jpg"
    bad = Row(7, {"image": "x\udc80", "note": None}, Problem("bad_text", "holds \udc80", "image"))
    plain = Row(5, {"image": "s3://a/b.jpg", "note": "zwei\nZeilen \u2028 ü"}, None)
    opened = relay([(Row(2, {"image": "a.jpg", "note": None}, None), sent), (plain, None), (bad, None)])
    assert (opened.columns, opened.warnings, opened.is_empty()) == (("image", "note", "file"), ("a warning",), False)
    first, second, third = opened.rows()
    assert first == Row(2, {"image": sent, "note": None, "file": "a.jpg"}, None) and second == plain
    assert third == Row(7, {"image": "x\ufffd", "note": None}, Problem("bad_text", "holds \ufffd", "image"))
    assert [row.line for row in opened.rows(after_line=2)] == [5, 7]


def test_a_column_called_file_stays_the_catalogues(relay: Callable[..., Relayed]) -> None:
    opened = relay([(Row(2, {"image": "a.jpg", "file": "mine"}, None), "0" * 64)], ("image", "file"))
    assert next(opened.rows()).values == {"image": "0" * 64, "file": "mine", "kontext_file": "a.jpg"}


def test_the_worker_holds_an_image_that_was_sent_to_its_name() -> None:
    right, wrong = "a" * 64, "b" * 64
    check_digest(f"{right}.jpg", "s3://shop/results/inputs", right)
    check_digest(f"{right}.jpg", "/photos", wrong)  # a name of the catalogue's own
    check_digest("dress.jpg", "s3://shop/results/inputs", wrong)
    with pytest.raises(SourceError, match="another SHA-256") as caught:
        check_digest(f"{right}.jpg", "s3://shop/results/inputs", wrong)
    assert (caught.value.code, caught.value.error_class) == ("wrong_digest", "input")
