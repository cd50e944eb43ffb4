"""`make audit` tells an answer from silence."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "deploy/audit.py"
GOOD = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "CVE-2026-1", "fix_versions": ["3"], "aliases": []}]}
SKIPPED = {"name": "c", "skip_reason": "Dependency not found on PyPI and could not be audited: c (3)"}


@pytest.fixture(scope="module")
def audit() -> Any:
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stand_in(folder: Path, script: str) -> str:
    """A pip-audit that does what the script says; `$4` is the service asked."""
    path = folder / "pip-audit"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def says(*packages: Any) -> str:
    return f"echo '{json.dumps({'dependencies': packages})}'"


@pytest.mark.parametrize(
    ("script", "status", "told"),
    [
        (says(GOOD, SKIPPED), 0, "pypi: 1 packages audited, 1 unknown to the service, no known vulnerability"),
        (says(GOOD, BAD) + "; exit 1", 1, "  b 2: CVE-2026-1, fixed in 3"),
        (says(SKIPPED), 0, "not audited: no advisory service answers here (pypi, osv)"),
        ("echo 'requests.exceptions.ConnectionError: x' >&2; exit 1", 0, "not audited: no advisory service answers"),
        (
            f'if [ "$4" = osv ]; then {says(BAD)}; exit 1; else {says(SKIPPED)}; fi',
            1,
            "osv: 1 packages audited",
        ),
        ("echo 'usage: pip-audit' >&2; exit 2", 2, "pip-audit failed: usage: pip-audit"),
    ],
)
def test_what_is_told_and_how_it_ends(
    audit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], script: str, status: int, told: str
) -> None:
    assert audit.main(stand_in(tmp_path, script)) == status
    shown = capsys.readouterr()
    assert told in shown.out + shown.err
