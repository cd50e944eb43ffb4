"""Drafts: what was dropped is kept whole, whatever its size, and found again by its id."""

import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from orchestrator import drafts
from orchestrator.drafts import DraftError, SentFile
from orchestrator.settings import Settings

MB = 1 << 20


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", results_uri=str(tmp_path / "results"))


def test_a_large_catalogue_is_streamed_and_comes_back_as_it_was(settings: Settings, tmp_path: Path) -> None:
    sent = tmp_path / "spring.csv"
    row = b"https://images.example.com/" + b"x" * 997 + b"\n"
    sent.write_bytes(b"image\n" + row * (24 * MB // len(row)))
    tracemalloc.start()
    try:
        draft = drafts.save([SentFile("spring.csv", sent)], settings)
        with drafts.fetch(drafts.load(draft.id, settings), settings) as path:
            peak_bytes = tracemalloc.get_traced_memory()[1]
            assert path.suffix == ".csv" and path.read_bytes() == sent.read_bytes()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 * MB


def test_the_same_files_make_the_same_draft(settings: Settings, tmp_path: Path) -> None:
    sent = tmp_path / "spring.csv"
    sent.write_text("image\na.jpg\n")
    first, second = (drafts.save([SentFile("spring.csv", sent)], settings) for _ in range(2))
    assert first == second
    sent.write_text("image\nb.jpg\n")
    assert drafts.save([SentFile("spring.csv", sent)], settings).id != first.id


@pytest.mark.parametrize("draft_id", ["0" * 32, "../../secret", ""])
def test_a_draft_that_there_is_not_is_an_error(settings: Settings, draft_id: str) -> None:
    with pytest.raises(DraftError, match="drop the files again"):
        drafts.load(draft_id, settings)


def test_of_two_images_of_one_name_none_is_lost_unsaid(settings: Settings, tmp_path: Path) -> None:
    paths = [tmp_path / f"{folder}-front.jpg" for folder in ("dress", "shirt")]
    for number, path in enumerate(paths):
        Image.new("RGB", (16, 16), (number * 200, 0, 0)).save(path)
    with pytest.raises(DraftError, match=r"two different images are named front\.jpg; rename one"):
        drafts.save([SentFile("front.jpg", path) for path in paths], settings)
    assert drafts.save([SentFile("front.jpg", paths[0])] * 2, settings).name == "front.jpg"
