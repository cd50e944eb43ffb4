"""What a dry run says of prompts that the text encoders cut. The bound itself is tested against the tokenizers."""

from pathlib import Path

import pytest

from kontext_model.revision import Defaults
from orchestrator import batches, row_reader
from orchestrator.batches import DryRun, dry_run
from orchestrator.catalogs import open_catalogue
from orchestrator.presets import PRESETS
from orchestrator.prompt_limits import find_cuts
from orchestrator.settings import Settings

FLAT_LAY = PRESETS["flat-lay"].prompt
CUT = (
    "prompt 'Transform the input photo of a person w…': at least 30 of its 88 words, from 'clean,' on, are lost to "
    "CLIP's summary (77 tokens); T5 reads 512 tokens"
)


def _dry_run(folder: Path, *lines: str, defaults: Defaults | None = None, most: int = 100, **asked: object) -> DryRun:
    (folder / "rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    catalogue = open_catalogue(folder / "rows.csv", Settings(home=folder / "home"))
    return dry_run(catalogue, asked, defaults or Defaults(), most_errors=most)


def test_the_flat_lay_prompt_is_told_once_for_each_recipe(tmp_path: Path) -> None:
    rows = [f"{number}.jpg,{steps}" for number, steps in enumerate([4, 8, 4, 8, 4])]
    told = _dry_run(tmp_path, "image,steps", *rows, preset="flat-lay")
    assert (told.rows, told.bad, told.recipes, len(told.warnings)) == (5, 0, 2, 2)
    assert all(warning.endswith(CUT) and warning.startswith("recipe ") for warning in told.warnings)
    assert len({warning[:15] for warning in told.warnings}) == 2


def test_a_recipe_met_again_after_it_was_forgotten_is_not_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_reader, "RECIPE_CACHE", 1)
    monkeypatch.setattr(batches, "CHUNK_ROWS", {"any": 1})
    told = _dry_run(tmp_path, "image,steps", "a.jpg,4", "b.jpg,8", "c.jpg,4", "d.jpg,8", preset="flat-lay")
    assert (told.recipes, len(told.warnings)) == (2, 2)


def test_each_digit_takes_room() -> None:
    (cut,) = find_cuts({"prompt": "1234567890 " * 9, "negative_prompt": None, "true_cfg": 1.0}, 512)
    assert "at least 1 of its 9 words" in cut


def test_a_short_prompt_is_not_told_of(tmp_path: Path) -> None:
    assert _dry_run(tmp_path, "image", "a.jpg", prompt="white " * 75).warnings == ()
    assert len(_dry_run(tmp_path, "image", "a.jpg", prompt="white " * 76).warnings) == 1


def test_what_t5_cuts_is_lost_altogether() -> None:
    recipe = {"prompt": "white " * 600, "negative_prompt": None, "true_cfg": 1.0}
    by_clip, by_t5 = find_cuts(recipe, 512)
    assert "at least 525 of its 600 words" in by_clip and "T5 reads on, up to 512 tokens" in by_clip
    assert "at least 89 of its 600 words" in by_t5 and by_t5.endswith("T5 reads 512 tokens; shorten it")


@pytest.mark.parametrize(("true_cfg", "told"), [(1.0, 0), (2.0, 1)])
def test_a_negative_prompt_counts_where_it_has_an_effect(true_cfg: float, told: int) -> None:
    cuts = find_cuts({"prompt": "press it", "negative_prompt": FLAT_LAY, "true_cfg": true_cfg}, 512)
    assert [cut.partition(" 'Tr")[0] for cut in cuts] == ["negative prompt"] * told


def test_many_cut_recipes_are_counted_not_listed(tmp_path: Path) -> None:
    rows = [f"{number}.jpg,{number + 1}" for number in range(12)]
    told = _dry_run(tmp_path, "image,steps", *rows, most=5, preset="flat-lay")
    assert len(told.warnings) == 6 and told.warnings[-1] == "… and 7 more recipes whose prompts are cut"


def test_a_text_of_signs_alone_is_read_in_one_go() -> None:
    assert find_cuts({"prompt": "☃" * 10_000, "negative_prompt": None, "true_cfg": 1.0}, 512) == []
