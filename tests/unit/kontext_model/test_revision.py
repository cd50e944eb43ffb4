"""Revisions and defaults: what a checkpoint is, without opening it."""

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub._tree_cache import TreeCacheEntry, write_tree_cache
from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled

from kontext_model import revision
from kontext_model.revision import CheckpointError, Defaults, read_defaults, read_revision, resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_without_a_file_the_defaults_are_those_of_flux_kontext_dev(tmp_path: Path) -> None:
    assert read_defaults(tmp_path) == Defaults(area_px=1048576, text_length=512, steps=28, guidance=2.5)


def test_the_file_overrides_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "kontext.json").write_text('{"area_px": 65536, "guidance": 3}')
    found = read_defaults(tmp_path)
    assert found == Defaults(area_px=65536, guidance=3.0)
    assert isinstance(found.guidance, float)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not readable JSON"),
        (b"\xff\xfe\x00", "is not readable JSON"),
        (b"[" * 100_000, "is not readable JSON"),
        (b"[1]", "must hold one object .* not list"),
        (b'{"area": 1}', "unknown key 'area'; known are area_px, text_length, steps, guidance"),
        (b'{"steps": "8"}', "steps must be a whole number, not '8'"),
        (b'{"steps": 8.5}', "steps must be a whole number, not 8.5"),
        (b'{"steps": true}', "steps must be a whole number, not True"),
        (b'{"steps": 0}', "steps must be from 1 to 1000, not 0"),
        (b'{"guidance": NaN}', "guidance must be a number, not nan"),
        (b'{"guidance": -1}', "guidance must be from 0.0 to 100.0, not -1"),
        (b'{"area_px": 10}', "area_px must be from 256 to 16777216, not 10"),
        (b'{"text_length": 513}', "text_length must be from 1 to 512, not 513"),
    ],
)
def test_a_malformed_file_is_an_error_that_names_it(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "kontext.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_defaults(tmp_path)
    assert str(tmp_path / "kontext.json") in str(caught.value)


def test_the_revision_is_of_the_content_not_of_the_place(tiny_folder: Path, tiny_copy: Path) -> None:
    found = read_revision(tiny_folder)
    assert len(found) == 40 and set(found) <= set("0123456789abcdef")
    assert read_revision(tiny_copy) == found
    (tiny_copy / "README.md").write_text("read by nobody")
    (tiny_copy / "vae" / ".cache.json").write_text("{}")
    assert read_revision(tiny_copy) == found


@pytest.mark.parametrize("name", ["kontext.json", "vae/config.json", "transformer/diffusion_pytorch_model.safetensors"])
def test_any_loaded_byte_changes_the_revision(tiny_copy: Path, name: str) -> None:
    before = read_revision(tiny_copy)
    with (tiny_copy / name).open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"~")
    assert read_revision(tiny_copy) != before


def test_a_file_moved_to_another_part_changes_the_revision(tiny_copy: Path) -> None:
    before = read_revision(tiny_copy)
    (tiny_copy / "vae" / "config.json").rename(tiny_copy / "vae" / "other.json")
    assert read_revision(tiny_copy) != before


@pytest.mark.parametrize("part", ["model_index.json", *revision.PARTS])
def test_a_missing_part_is_named(tiny_copy: Path, part: str) -> None:
    path = tiny_copy / part
    path.unlink() if path.is_file() else shutil.rmtree(path)
    with pytest.raises(CheckpointError, match=part) as caught:
        read_revision(tiny_copy)
    assert str(tiny_copy) in str(caught.value)


def test_an_empty_part_is_missing(tiny_copy: Path) -> None:
    for path in (tiny_copy / "vae").iterdir():
        path.unlink()
    with pytest.raises(CheckpointError, match="vae"):
        read_revision(tiny_copy)


def test_the_cache_saves_reading_until_size_or_mtime_change(tiny_copy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "revisions.json"
    before = read_revision(tiny_copy, cache)
    weights = tiny_copy / "vae" / "diffusion_pytorch_model.safetensors"
    status = weights.stat()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert read_revision(tiny_copy, cache) == before, "equal size and mtime: the file was read again"
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert read_revision(tiny_copy, cache) != before
    assert [path.name for path in cache.parent.iterdir()] == ["revisions.json"], "a temporary file was left"


def test_the_cache_forgets_files_that_are_gone(tiny_folder: Path, tiny_copy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "revisions.json"
    read_revision(tiny_copy, cache)
    shutil.rmtree(tiny_copy)
    read_revision(tiny_folder, cache)
    assert all(path.startswith(str(tiny_folder.resolve())) for path in json.loads(cache.read_text()))


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"/": 1}', b"[" * 100_000])
def test_a_corrupt_cache_is_ignored(tiny_folder: Path, tmp_path: Path, content: bytes) -> None:
    cache = tmp_path / "revisions.json"
    cache.write_bytes(content)
    assert read_revision(tiny_folder, cache) == read_revision(tiny_folder)
    assert isinstance(json.loads(cache.read_text()), dict)


def test_corrupt_entries_of_the_cache_are_ignored(tiny_folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "revisions.json"
    expected = read_revision(tiny_folder, cache)
    entries: dict[str, Any] = json.loads(cache.read_text())
    cache.write_text(json.dumps(dict(zip(entries, [None, 5, [], [1, 2, 3], ["a"], [1, 2, "x"]] * 3, strict=False))))
    assert read_revision(tiny_folder, cache) == expected


def test_a_cache_that_cannot_be_written_costs_only_time(tiny_folder: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert read_revision(tiny_folder, blocked / "revisions.json") == read_revision(tiny_folder)


def test_a_folder_is_pinned_to_its_content(tiny_folder: Path) -> None:
    found = resolve(str(tiny_folder))
    assert found.folder == tiny_folder and found.revision == read_revision(tiny_folder)
    assert found.defaults == read_defaults(tiny_folder)
    assert resolve(tiny_folder, found.revision) == resolve(tiny_folder)
    with pytest.raises(CheckpointError, match=f"has revision {found.revision}, not the asked {COMMIT}"):
        resolve(tiny_folder, COMMIT)


@pytest.mark.parametrize(
    "ref", ["no-such-folder", "/no/such/folder", "a/b/c", "../up", "./owner/name", "owner/", "a/b@", "a/b@../c"]
)
def test_what_is_neither_a_folder_nor_a_hub_id_is_an_error(ref: str) -> None:
    with pytest.raises(CheckpointError, match="is not a folder; give a diffusers-layout folder or a hub id"):
        resolve(ref)


def test_a_hub_id_without_the_client_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="needs the package huggingface_hub"):
        resolve("owner/name")


class Hub:
    """What the hub answers, what it was asked, and the local cache of its client, which is real."""

    def __init__(self, cache: Path) -> None:
        self.repository = cache / "models--owner--name"
        self.asked: list[str] = []
        self.error: Exception | None = None

    def repo_info(self, repo_id: str, revision: str | None = None, **_: Any) -> SimpleNamespace:
        self.asked.append(f"{repo_id}@{revision}")
        if self.error is not None:
            raise self.error
        return SimpleNamespace(sha=COMMIT)

    def note_missing(self, name: str) -> None:
        """As the client does when the hub says that a commit has no such file."""
        path = self.repository / ".no_exist" / COMMIT / name
        path.parent.mkdir(parents=True)
        path.touch()

    def list_files(self, *names: str) -> None:
        """As the client does when it downloads a snapshot."""
        entries = {name: TreeCacheEntry(2, "0" * 40, None, None, None) for name in names}
        write_tree_cache(str(self.repository), COMMIT, entries)

    def keep(self, name: str, content: str) -> None:
        path = self.repository / "snapshots" / COMMIT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """Not reached for anything but a commit: whatever else is asked is in the cache, or an error."""
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda _, *given, **named: hub.repo_info(*given, **named))
    return hub


def test_a_hub_id_is_pinned_to_its_commit(hub: Hub) -> None:
    hub.keep("kontext.json", '{"steps": 4}')
    pinned = revision.CheckpointRef(f"owner/name@{COMMIT}", None, COMMIT, Defaults(steps=4))
    assert resolve("owner/name") == resolve("owner/name", "dev") == resolve("owner/name@dev") == pinned
    assert resolve("owner/name@refs/pr/4") == pinned
    assert hub.asked == ["owner/name@None", "owner/name@dev", "owner/name@dev", "owner/name@refs/pr/4"]


def test_what_is_pinned_stays_and_needs_no_look_up(hub: Hub) -> None:
    hub.keep("kontext.json", '{"steps": 4}')
    pinned = resolve(f"owner/name@{COMMIT}")
    assert resolve(pinned.ref) == resolve("owner/name", COMMIT) == resolve(pinned.ref, COMMIT) == pinned
    assert resolve("owner/name@main", COMMIT) == pinned, "a run goes on with the commit that it began with"
    assert not hub.asked
    with pytest.raises(CheckpointError, match="is pinned, and not to the asked ffff"):
        resolve(pinned.ref, "f" * 40)


def test_a_repository_without_defaults_has_the_usual_ones(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def say_no(*_: Any, **__: Any) -> str:
        raise EntryNotFoundError("no such file")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", say_no)
    assert resolve("owner/name").defaults == Defaults()


def test_without_the_network_what_the_cache_knows_is_enough(hub: Hub) -> None:
    hub.note_missing("kontext.json")
    assert resolve(f"owner/name@{COMMIT}").defaults == Defaults()


def test_without_the_network_a_downloaded_snapshot_is_enough(hub: Hub) -> None:
    hub.list_files("model_index.json")
    assert resolve(f"owner/name@{COMMIT}").defaults == Defaults()


@pytest.mark.parametrize("error", [OfflineModeIsEnabled("offline"), httpx2.ConnectError("down")])
def test_without_the_network_a_branch_is_what_it_last_was(hub: Hub, error: Exception) -> None:
    hub.note_missing("kontext.json")
    pinned = resolve("owner/name@dev")
    hub.error = error
    assert resolve("owner/name@dev") == pinned
    with pytest.raises(CheckpointError, match="'owner/name' is not a folder here, nor readable on the hub"):
        resolve("owner/name")


@pytest.mark.parametrize("listed", [(), ("model_index.json", "kontext.json")])
def test_a_hub_that_is_not_reached_is_not_one_without_defaults(hub: Hub, listed: tuple[str, ...]) -> None:
    if listed:
        hub.list_files(*listed)
    with pytest.raises(CheckpointError, match="'owner/name' is not a folder here, nor readable on the hub"):
        resolve("owner/name")
