"""Opening the model of a worker: settings reach it, and what falls back is logged."""

import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kontext_model import KontextEditor
from kontext_model.revision import CheckpointError
from orchestrator.checkpoints import PACKAGED
from orchestrator.settings import Settings
from orchestrator.state.transitions import Stage
from workers.app import open_editor


def test_what_cannot_be_had_without_changing_pictures_is_logged(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, checkpoint=str(PACKAGED), attention="flash", step_cache="taylorseer")
    with capture_logs() as logs:
        editor = open_editor(settings, [Stage.SAMPLE])
    assert [each["log_level"] for each in logs] == ["warning"]
    assert logs[0]["reason"].startswith("attention 'flash' does not run here")
    assert isinstance(editor, KontextEditor) and editor.checkpoint.acceleration.step_cache == "taylorseer"


def test_what_would_change_pictures_is_an_error_when_it_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    settings = Settings(home=tmp_path, checkpoint=str(PACKAGED), quantize="fp8")
    with pytest.raises(CheckpointError, match="quantize 'fp8' needs the package torchao"):
        open_editor(settings, [Stage.SAMPLE])
