"""`kontext-model`: its words, and how its errors end."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kontext_model import cli
from kontext_model.cli import app
from kontext_model.trace import report

PACKAGED = Path(cli.__file__).with_name("wardrobe") / "checkpoint"
COMMANDS = ("trace", "samplers", "train", "evaluate")


def test_help_names_the_commands_and_imports_no_torch() -> None:
    code = (
        "import sys\nfrom kontext_model.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "print(*sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert all(f"  {name}  " in done.stdout for name in COMMANDS)
    assert done.stdout.splitlines()[-1] == "", "the help must answer without the model's libraries"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    done = CliRunner().invoke(app, [command, "-h"], prog_name="kontext-model")
    assert done.exit_code == 0
    assert done.stdout.startswith(f"Usage: kontext-model {command}") and len(done.stdout.splitlines()) > 6


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trace", "--size", "big"], "--size reads like 1024x1024 (width, height in pixels), not 'big'"),
        (["trace", "--size", "16x5000"], "height must be from 1 to 4096 px, not 5000"),
        (["train", "nowhere.toml"], "nowhere.toml"),
        (["evaluate", "nowhere"], "nowhere"),
        (["evaluate", str(PACKAGED), "--device", "cuda:99"], "device 'cuda:99' cannot be used here"),
    ],
)
def test_an_error_is_one_line_and_status_2(arguments: list[str], sentence: str) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("kontext-model: ") and sentence in done.stderr


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kontext_model.trace", None)
    done = CliRunner().invoke(app, ["trace"])
    assert done.exit_code == 2 and "pip install 'kontext-batch[worker]'" in done.stderr


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(report, "trace_model", fail)
    assert isinstance(CliRunner().invoke(app, ["trace"]).exception, RuntimeError)


def test_interrupting_is_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "trace_model", interrupt)
    done = CliRunner().invoke(app, ["trace"])
    assert done.exit_code == 130 and done.stderr == "interrupted\n"


def test_the_script_is_installed() -> None:
    script = Path(sys.executable).with_name("kontext-model")
    assert "kontext_model.cli" in script.read_text(encoding="utf-8")
    assert callable(cli.main)
