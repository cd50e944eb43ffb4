"""What a caller from elsewhere may name: his own files and the world's, none of the server's."""

import json
from pathlib import Path

import pytest

from kontext_model.lora_file import LoraError, LoraPin
from orchestrator.settings import Settings
from orchestrator.submission import inputs_uri, make_request

HEADER = json.dumps({"transformer.x.lora_A.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", results_uri=str(tmp_path / "results"))


def write_lora(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(HEADER).to_bytes(8, "little") + HEADER + bytes(4))
    return path


def pin(name: str, settings: Settings) -> LoraPin:
    """Pin a LoRA as the row of a catalogue names it."""
    return make_request(settings, {"prompt": "x"}).pin_lora(name, "")


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(
    "spelling",
    [
        "{}", "file://{}", "FILE://{}", "File://{}", "fIlE://localhost{}", "file:{}", "FILE:{}", "S3://{}", "HF:/{}",
        "./{}", "~/{}", "x/../..{}", "C:{}", "\\\\host{}", "s3://../..{}",
    ],
)  # fmt: skip
def test_a_lora_on_the_servers_disk_is_refused_alike_whether_it_is_there(
    settings: Settings, tmp_path: Path, spelling: str, there: bool
) -> None:
    path = write_lora(tmp_path / "private" / "secret.safetensors") if there else tmp_path / "none" / "a.safetensors"
    with pytest.raises(LoraError, match="names s3:// or a hub id, no file of the server") as caught:
        pin(spelling.format(path), settings)
    assert caught.value.code == "bad_lora"


def test_a_lora_among_what_was_sent_is_opened(settings: Settings) -> None:
    sent = write_lora(Path(inputs_uri(settings)) / "style.safetensors")
    assert pin("style.safetensors", settings).place == str(sent)
