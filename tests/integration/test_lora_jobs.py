"""LoRAs from the catalogue to the picture: pinned at submit, fetched and applied by a worker, refused by name."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
import torch
from PIL import Image
from safetensors.torch import save_file
from sqlalchemy import Engine

from kontext_model import Edit, KontextEditor
from kontext_model.checkpoint_maker import make_checkpoint
from kontext_model.lora_file import LoraError, LoraPin
from orchestrator.batches import Request, create_batch, dry_run, ingest, request_of
from orchestrator.catalogs import Catalogue, open_catalogue
from orchestrator.checkpoints import pin_checkpoint
from orchestrator.settings import Settings
from orchestrator.state import queries
from orchestrator.state.database import open_database, reading
from orchestrator.state.messages import Bell
from orchestrator.state.tables import metadata
from orchestrator.state.transitions import Stage
from orchestrator.storage import Unavailable, open_object
from orchestrator.storage.loras import fetch_lora, pin_lora
from workers.bench import open_bench
from workers.handoff import Handoffs
from workers.tasks import Worker

PROMPT = "Flat lay on white."


def write_lora(path: Path, seed: int = 0, layer: str = "transformer_blocks.0.attn.to_q", width: int = 32) -> str:
    """A random LoRA for one layer of the tiny transformer; gives the digest of its file."""
    generator = torch.Generator().manual_seed(seed)
    halves = {"A": torch.randn(2, width, generator=generator), "B": torch.randn(width, 2, generator=generator)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"transformer.{layer}.lora_{half}.weight": value for half, value in halves.items()}, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny", size="tiny")


@pytest.fixture
def shop(tiny: Path, s3: Settings, valkey_url: str, tmp_path: Path) -> Iterator["Shop"]:
    settings = s3.model_copy(update={"home": tmp_path / "home", "checkpoint": str(tiny), "unit_size": 4})
    engine = open_database(f"sqlite:///{tmp_path / 'state.db'}")
    metadata.create_all(engine)
    yield Shop(tmp_path, settings, engine, valkey_url)
    engine.dispose()


class Shop:
    """A folder with a photo, and all that makes and works off a batch."""

    def __init__(self, folder: Path, settings: Settings, engine: Engine, cache_url: str) -> None:
        self.folder, self.settings, self.engine, self.cache_url = folder, settings, engine, cache_url
        self.s3_uri = str(settings.results_uri)
        Image.effect_mandelbrot((80, 64), (-2, -1.2, 1, 1.2), 60).convert("RGB").save(folder / "a.png")

    @property
    def request(self) -> Request:
        asked = {"prompt": PROMPT, "steps": 1}
        return request_of(self.settings, pin_checkpoint(self.settings), asked, str(self.folder / "results"))

    def catalogue(self, *rows: str) -> Catalogue:
        """A catalogue of the one photo, with these values of `lora,lora_scale`."""
        lines = [f"a.png,{number},{row}" for number, row in enumerate(rows)]
        (self.folder / "rows.csv").write_text("\n".join(["image,custom_id,lora,lora_scale", *lines]))
        return open_catalogue(self.folder / "rows.csv", self.settings)

    def submit(self, *rows: str) -> str:
        catalogue = self.catalogue(*rows)
        return ingest(self.engine, create_batch(self.engine, catalogue, self.request), catalogue, self.request).id

    def work(self, batch_id: str, **changed: Any) -> KontextEditor:
        """Serve every recipe of a batch in one worker, in the order they first occur; gives its editor."""
        settings = self.settings.model_copy(update=changed)
        editor = KontextEditor.open(str(settings.checkpoint))
        handoffs = Handoffs(redis.Redis.from_url(self.cache_url), ttl_s=600, scope="test")
        order = dict.fromkeys(row["recipe_id"] for row in self.rows(batch_id) if row["recipe_id"])
        with open_bench(self.engine, settings, editor, handoffs) as bench:
            worker = Worker("w", bench, frozenset(Stage), lambda bells: None)
            with self.engine.begin() as connection:
                queries.dispatch(connection, batch_id, 100)
            for recipe_id in order:
                while worker.serve(Bell(Stage.ENCODE, editor.revision, recipe_id, "")):
                    pass
        return editor

    def rows(self, batch_id: str) -> list[dict[str, Any]]:
        return [dict(row) for row in queries.stream_jobs(self.engine, batch_id)]

    def recipe(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        with reading(self.engine).connect() as connection:
            return queries.read_recipe(connection, row["recipe_id"]) or {}

    def picture(self, row: Mapping[str, Any]) -> "np.ndarray[Any, Any]":
        with Image.open(row["result"]) as picture:
            return np.asarray(picture, dtype=int)


def test_each_job_is_drawn_with_its_own_lora(shop: Shop) -> None:
    local, remote = shop.folder / "loras/one.safetensors", shop.folder / "two.safetensors"
    digests = [write_lora(local, 1), write_lora(remote, 2)]
    store, key = open_object(f"{shop.s3_uri}/two.safetensors", shop.settings)
    store.replace(key, remote)
    rows = ("", "loras/one.safetensors,", f"{shop.s3_uri}/two.safetensors,0.5", "loras,-1", ",", "loras,0")
    jobs = shop.rows(batch_id := shop.submit(*[row if "," in row else f"{row}," for row in rows]))
    named = [{key: value for key, value in shop.recipe(job).items() if "lora" in key} for job in jobs]
    assert named[1] == {"lora": str(local), "lora_sha256": digests[0], "lora_scale": 1.0}
    assert named[2] == {"lora": f"{shop.s3_uri}/two.safetensors", "lora_sha256": digests[1], "lora_scale": 0.5}
    assert named[3] == named[1] | {"lora_scale": -1.0} and named[0] == named[4] == named[5] == {}
    assert jobs[0]["recipe_id"] == jobs[4]["recipe_id"] == jobs[5]["recipe_id"]

    # Another host: the worker has no copy of what S3 holds.
    editor = shop.work(batch_id, home=shop.folder / "elsewhere")
    jobs = shop.rows(batch_id)
    assert [job["state"] for job in jobs] == ["succeeded"] * 6, [job["message"] for job in jobs]
    copies = [path.name for path in (shop.folder / "elsewhere/loras").glob("*.safetensors")]
    assert copies == [f"{digests[1]}.safetensors"] and len(editor.adapters.loaded) == 2
    assert len({job["fingerprint"] for job in jobs}) == 4
    edits = [(None, 1.0), (local, 1.0), (remote, 0.5), (local, -1.0), (None, 1.0), (None, 1.0)]
    with Image.open(shop.folder / "a.png") as photo:
        fresh = KontextEditor.open(str(shop.settings.checkpoint))
        expected = fresh([photo] * 6, [Edit(PROMPT, steps=1, lora=lora, lora_scale=scale) for lora, scale in edits])
    for job, picture in zip(jobs, expected, strict=True):
        assert abs(shop.picture(job) - np.asarray(picture, dtype=int)).max() <= 1
    pictures = [shop.picture(job) for job in jobs[:4]]
    assert all(abs(one - other).max() > 1 for n, one in enumerate(pictures) for other in pictures[:n])


def test_a_lora_that_changed_or_fits_nothing_fails_its_jobs_alone(shop: Shop) -> None:
    changed, wide = shop.folder / "changed.safetensors", shop.folder / "wide.safetensors"
    pinned, gone = write_lora(changed, 1), shop.folder / "gone.safetensors"
    write_lora(wide, 1, width=48)
    write_lora(gone, 3)
    jobs = [f"{path.name}," for path in (changed, changed, wide, gone)]
    batch_id = shop.submit(*jobs, ",")
    found = write_lora(changed, 2)
    gone.unlink()
    shop.work(batch_id)
    told = [(job["state"], job["code"], job["attempt"], job["failures"]) for job in shop.rows(batch_id)]
    assert told[:2] == [("failed", "lora_changed", 0, 1)] * 2
    assert told[2:] == [("failed", "bad_lora", 0, 1), ("failed", "lora_missing", 0, 1), ("succeeded", None, 0, 0)]
    messages = [job["message"] for job in shop.rows(batch_id)]
    assert str(changed) in messages[0] and found[:12] in messages[0] and pinned[:12] in messages[0]
    assert f"LoRA {wide}: transformer_blocks.0.attn.to_q has A (2, 48)" in messages[2]
    assert f"LoRA {gone}: there is no such file" in messages[3]


def test_rows_whose_lora_cannot_be_pinned_are_bad_rows(shop: Shop) -> None:
    write_lora(shop.folder / "good.safetensors")
    (shop.folder / "bad.safetensors").write_bytes(b"pickle")
    s3, rows = shop.s3_uri, ("good.safetensors,", "no.safetensors,", "bad.safetensors,", "good.safetensors,x")
    jobs = shop.rows(shop.submit(*rows, f"{s3}/no.safetensors,", f"{s3}/folder,", "ftp://x/y.safetensors,"))
    assert [job["code"] for job in jobs] == [
        None, "lora_missing", "bad_lora", "bad_lora_scale", "lora_missing", "bad_lora", "location_invalid",
    ]  # fmt: skip
    for line, name in ((3, "no.safetensors"), (4, "bad.safetensors"), (6, f"{s3}/no.safetensors")):
        message = jobs[line - 2]["message"]
        assert f"rows.csv, line {line}, column lora: LoRA " in message and name in message

    read: list[str] = []

    def pin(name: str, root: str) -> LoraPin:
        read.append(name)
        if name == "bad":
            raise LoraError(name, "it is not a safetensors file")
        return LoraPin(f"{root}/{name}", "a" * 64)

    defaults = shop.request.checkpoint.defaults
    dry = dry_run(shop.catalogue("good,", "good,2", "bad,", "bad,2"), shop.request.asked, defaults, pin)
    assert (dry.bad, dry.recipes, read) == (2, 2, ["good", "bad"]), "each LoRA is read once"


def test_a_store_that_is_away_stops_the_reading_and_spoils_no_row(shop: Shop) -> None:
    catalogue = shop.catalogue("x.safetensors,")

    def away(name: str, root: str) -> LoraPin:
        raise Unavailable("the S3 server does not answer")

    request = replace(shop.request, pin_lora=away)
    batch = create_batch(shop.engine, catalogue, request)
    with pytest.raises(Unavailable):
        ingest(shop.engine, batch, catalogue, request)
    write_lora(shop.folder / "x.safetensors")
    assert ingest(shop.engine, batch, catalogue, shop.request).total == 1
    assert [row["state"] for row in shop.rows(batch.id)] == ["pending"]


class TestPlaces:
    @pytest.fixture
    def style(self, tmp_path: Path) -> Path:
        write_lora(tmp_path / "loras/style.safetensors")
        return tmp_path / "loras/style.safetensors"

    def test_a_path_counts_from_where_it_is_named(
        self, style: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(style.parent))
        root = str(style.parents[1])
        names = ["loras/style.safetensors", "loras", str(style), f"file://{style}", "~/style.safetensors"]
        assert {pin_lora(name, root, settings) for name in names} == {pin_lora(style.name, str(style.parent), settings)}

    def test_an_object_is_copied_once_for_each_content(
        self, style: Path, s3: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = s3.model_copy(update={"home": tmp_path / "home"})
        root = f"{s3.results_uri}/shop"
        store, key = open_object(f"{root}/loras/deep/style.safetensors", settings)
        store.replace(key, style)
        pin = pin_lora("loras/deep/style.safetensors", root, settings)
        assert pin == LoraPin(f"{root}/loras/deep/style.safetensors", hashlib.sha256(style.read_bytes()).hexdigest())
        with monkeypatch.context() as patch:
            patch.setattr(type(store), "open", None)  # a second download would fail
            assert pin_lora(pin.place, "/", settings) == pin
            assert fetch_lora(pin, settings).read_bytes() == style.read_bytes()
        write_lora(style, 2)
        store.replace(key, style)
        renewed = pin_lora(pin.place, "/", settings)
        assert renewed.place == pin.place and renewed.sha256 != pin.sha256
        assert fetch_lora(pin, settings).name == f"{pin.sha256}.safetensors", "the older jobs still have theirs"
        assert not list((tmp_path / "home/loras").glob(".partial-*"))

    def test_an_object_too_large_is_not_downloaded(
        self, style: Path, s3: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = s3.model_copy(update={"home": tmp_path / "home"})
        store, key = open_object(f"{s3.results_uri}/style.safetensors", settings)
        store.replace(key, style)
        monkeypatch.setattr("orchestrator.storage.loras.MAX_BYTES", 100)
        with pytest.raises(LoraError, match=r"LoRA s3://.*bytes are more than the 100 allowed"):
            pin_lora(f"{s3.results_uri}/style.safetensors", "/", settings)
        assert not (tmp_path / "home/loras").exists()

    def test_a_hub_id_is_asked_only_where_nothing_lies(
        self, style: Path, settings: Settings, s3: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[str] = []

        def pin_hub(name: str) -> str:
            asked.append(name)
            return f"hf://{name}@commit/style.safetensors"

        monkeypatch.setattr("orchestrator.storage.loras.pin_hub", pin_hub)
        monkeypatch.setattr("orchestrator.storage.loras.download", lambda place: style)
        root = str(style.parents[2])
        assert pin_lora(f"{style.parents[1].name}/loras", root, settings).place == str(style) and asked == []
        for where in (root, str(s3.results_uri)):
            assert pin_lora("owner/name", where, s3).place == "hf://owner/name@commit/style.safetensors"
        assert pin_lora("owner/name/style.safetensors", str(s3.results_uri), s3).place.startswith("hf://")
        assert len(asked) == 3
