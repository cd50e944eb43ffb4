"""A checkpoint below an S3 prefix: pinned without copying weights, copied once and in parts, on from where it broke."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from kontext_model.checkpoint_maker import make_checkpoint
from kontext_model.revision import CheckpointError, read_defaults
from orchestrator.checkpoints import pin_checkpoint
from orchestrator.settings import Settings
from orchestrator.state.transitions import Stage
from orchestrator.storage import ObjectInfo, Unavailable, open_store, weights
from orchestrator.storage.s3 import S3Store
from orchestrator.storage.weights import fetch_weights, pin_weights
from workers.app import open_editor

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("made") / "tiny", size="tiny")


@pytest.fixture
def settings(s3: Settings, folder: Path, tmp_path: Path) -> Settings:
    """Settings whose checkpoint is a prefix, with a stranger beside the weights."""
    uri = f"{s3.results_uri}/weights"
    store = open_store(uri, s3)
    for path in folder.rglob("*"):
        if path.is_file():
            store.put(str(path.relative_to(folder)), path.read_bytes())
    store.put("all-in-one.safetensors", b"the same weights in another layout")
    store.put("transformer/model.bin", b"a pickle")
    return s3.model_copy(update={"checkpoint": f"{uri}/", "home": tmp_path / "home"})


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_prefix_is_pinned_by_its_listing_and_leaves_nothing_here(settings: Settings, folder: Path) -> None:
    pinned = pin_checkpoint(settings)
    assert pinned.ref == str(settings.checkpoint).rstrip("/") and pinned.folder is None
    assert len(pinned.revision) == 40 and pinned.defaults == read_defaults(folder)
    assert not settings.home.exists()
    store = open_store(pinned.ref, settings)
    store.replace("all-in-one.safetensors", b"not read")
    assert pin_checkpoint(settings) == pinned
    store.replace(WEIGHTS, (folder / WEIGHTS).read_bytes() + b"x")
    assert pin_checkpoint(settings).revision != pinned.revision


def test_a_worker_copies_what_its_stages_need_and_has_the_pinned_revision(settings: Settings, folder: Path) -> None:
    pinned = pin_checkpoint(settings)
    copy = settings.home / "checkpoints" / pinned.revision
    assert open_editor(settings, [Stage.DECODE]).revision == pinned.revision
    configs = {f"{part}/config.json" for part in ("transformer", "text_encoder", "text_encoder_2", "vae")}
    loose = {"model_index.json", "kontext.json", "vae/diffusion_pytorch_model.safetensors"}
    assert _files(copy) == configs | loose
    assert open_editor(settings, [Stage.SAMPLE]).revision == pinned.revision
    assert WEIGHTS in _files(copy) and not any("pickle" in name or name.endswith(".bin") for name in _files(copy))
    assert (copy / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


def test_a_copy_that_broke_off_goes_on_and_is_made_once_by_many(
    settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, whole = str(settings.checkpoint), (folder / WEIGHTS).read_bytes()
    revision = pin_weights(uri, settings).revision
    partial = settings.home / "checkpoints" / revision / "transformer" / f".{Path(WEIGHTS).name}.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(whole[:1000])
    starts: list[int] = []
    open_ = S3Store.open

    def watch(self: S3Store, key: str, start: int = 0) -> object:
        if key == WEIGHTS:
            starts.append(start)
        return open_(self, key, start)

    monkeypatch.setattr(S3Store, "open", watch)
    barrier = threading.Barrier(4)

    def fetch(_: int) -> Path | None:
        barrier.wait()
        return fetch_weights(uri, settings, {"transformer"}).folder

    with ThreadPoolExecutor(4) as threads:
        (copy,) = set(threads.map(fetch, range(4)))
    assert starts == [1000]
    assert copy is not None and (copy / WEIGHTS).read_bytes() == whole and not partial.exists()


def test_a_server_that_lists_other_times_than_it_heads_serves_a_checkpoint_too(
    settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = S3Store.head

    def head_in_whole_seconds(self: S3Store, key: str) -> ObjectInfo | None:
        info = head(self, key)
        return None if info is None else replace(info, modified_s=info.modified_s // 1 - 1)

    monkeypatch.setattr(S3Store, "head", head_in_whole_seconds)
    copy = fetch_weights(str(settings.checkpoint), settings, {"transformer"}).folder
    assert copy is not None and (copy / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


@pytest.mark.parametrize("end", ["replaced", "deleted"])
def test_what_changes_while_it_is_copied_is_not_kept(
    settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    copy = weights.shutil.copyfileobj

    def replace_meanwhile(source: object, target: object, size: int) -> None:
        copy(source, target, size)  # type: ignore[arg-type,misc]
        if getattr(target, "name", "").endswith(f".{Path(WEIGHTS).name}.partial"):
            store = open_store(str(settings.checkpoint), settings)
            if end == "deleted":
                store.delete(WEIGHTS)
            else:
                store.replace(WEIGHTS, b"\0" * (folder / WEIGHTS).stat().st_size)

    monkeypatch.setattr(weights.shutil, "copyfileobj", replace_meanwhile)
    with pytest.raises(CheckpointError, match=f"{WEIGHTS} changed while it was copied; start again"):
        fetch_weights(str(settings.checkpoint), settings, {"transformer"})
    assert not list(settings.home.rglob("*.safetensors*"))


def test_what_is_no_checkpoint_is_refused(settings: Settings) -> None:
    store = open_store(str(settings.checkpoint), settings)
    for key, message in (("vae/config.json", "has no part vae/"), ("model_index.json", "has no model_index.json")):
        for info in list(store.list(key.partition("/")[0])):
            store.delete(info.key)
        with pytest.raises(CheckpointError, match=message):
            pin_weights(str(settings.checkpoint), settings)
    with pytest.raises(CheckpointError, match="is no location"):
        pin_weights("s3://B/x", settings)
    away = settings.model_copy(update={"local_s3_url": "http://a:b@127.0.0.1:9"})
    with pytest.raises(Unavailable):
        pin_weights(str(settings.checkpoint), away)


def test_a_disk_too_small_is_told_before_anything_is_copied(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 100})())
    with pytest.raises(CheckpointError, match=r"room for 0.0 GB, and the checkpoint needs .* set KONTEXT_HOME"):
        fetch_weights(str(settings.checkpoint), settings, {"vae"})
