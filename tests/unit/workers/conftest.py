"""A bench without servers."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import create_engine

from orchestrator.settings import Settings
from workers.bench import Bench, open_bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A bench of a worker that can draw, whose batch keeps its results in a folder."""
    editor: Any = SimpleNamespace(draws_previews=True)
    handoffs: Any = None
    with open_bench(create_engine("sqlite://"), Settings(home=tmp_path, preview_every=2), editor, handoffs) as opened:
        batch: Any = SimpleNamespace(results_uri=str(tmp_path / "results"))
        opened.batch = lambda _: batch  # type: ignore[assignment]
        yield opened
