"""Recipes: what a row, the call, a preset and the checkpoint say becomes one body, and wrong values are explained."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontext_model.canvas import MAX_SIDE_PX
from kontext_model.lora_file import LoraPin
from orchestrator.catalogs import KNOWN_COLUMNS
from orchestrator.presets import PRESETS
from orchestrator.recipes import (
    OPTIONS,
    PER_JOB,
    PROMPT_MAX_CHARACTERS,
    OptionError,
    Recipe,
    read_option,
    resolve_recipe,
)

DEFAULTS = {"area_px": 65_536, "text_length": 64, "steps": 8, "guidance": 2.5}


def body(row: dict[str, str], **asked: Any) -> dict[str, Any]:
    resolved: dict[str, Any] = json.loads(resolve_recipe(row, asked, DEFAULTS).body)
    return resolved


class TestMerging:
    def test_what_nobody_says_the_checkpoint_says(self) -> None:
        assert body({"prompt": "press it"}) == {
            "prompt": "press it", "negative_prompt": None, "steps": 8, "guidance": 2.5, "true_cfg": 1.0, "width": None,
            "height": None, "fit": "pad", "sampler": "euler",
        }  # fmt: skip

    def test_a_row_goes_before_the_call_and_the_call_before_the_checkpoint(self) -> None:
        resolved = body({"steps": "3"}, prompt="press it", steps=5, guidance=1.5)
        assert (resolved["prompt"], resolved["steps"], resolved["guidance"]) == ("press it", 3, 1.5)

    def test_a_presets_options_give_way_to_what_is_asked(self) -> None:
        assert body({"preset": "detail-crop"})["fit"] == "crop"
        assert body({"preset": "detail-crop"}, fit="pad")["fit"] == "pad"
        assert body({"preset": "detail-crop", "fit": "stretch"}, fit="pad")["fit"] == "stretch"

    def test_a_rows_own_prompt_replaces_the_calls_preset_with_all_it_brings(self) -> None:
        resolved = body({"prompt": "press it"}, preset="detail-crop")
        assert (resolved["prompt"], resolved["fit"]) == ("press it", "pad")
        assert body({"preset": "flat-lay"}, prompt="press it")["prompt"] == PRESETS["flat-lay"].prompt

    def test_a_calls_prompt_goes_before_a_calls_preset(self) -> None:
        assert body({}, preset="flat-lay", prompt="my own")["prompt"] == "my own"

    def test_flat_lay_is_the_shops_own_prompt_to_the_letter(self) -> None:
        # A changed letter is another recipe, and makes every picture anew.
        digest = hashlib.sha256(body({"preset": "flat-lay"})["prompt"].encode()).hexdigest()
        assert digest == "493d17b7cfea0d64ce06fc0767c9e578ce72d688082024942911a0c05d969c81"

    @pytest.mark.parametrize("row", [{}, {"steps": "4"}, {"negative_prompt": "blurry"}])
    def test_a_row_without_a_prompt_is_an_error(self, row: dict[str, str]) -> None:
        with pytest.raises(OptionError, match="--prompt or --preset") as caught:
            body(row)
        assert (caught.value.code, caught.value.column) == ("missing_prompt", "prompt")

    def test_a_row_with_two_is_an_error(self) -> None:
        with pytest.raises(OptionError, match="keep one") as caught:
            body({"prompt": "press it", "preset": "flat-lay"})
        assert caught.value.code == "prompt_and_preset"


class TestIdentity:
    def test_equal_recipes_have_one_id_however_they_were_said(self) -> None:
        written = resolve_recipe({"prompt": "p", "steps": "8", "guidance": "2.50"}, {}, DEFAULTS)
        silent = resolve_recipe({}, {"prompt": "p"}, DEFAULTS)
        sheet = resolve_recipe({"prompt": "p", "steps": "8.0"}, {}, DEFAULTS)
        assert written == silent == sheet and len(written.id) == 20

    def test_a_preset_is_the_prompt_it_stands_for(self) -> None:
        by_name = resolve_recipe({"preset": "flat-lay"}, {}, DEFAULTS)
        assert by_name == resolve_recipe({"prompt": PRESETS["flat-lay"].prompt}, {}, DEFAULTS)

    def test_an_id_stays_over_releases(self) -> None:
        # Stored in SQL and part of every fingerprint: another value would make earlier results unusable.
        assert resolve_recipe({"prompt": "press it"}, {}, DEFAULTS).id == "99984f2b5f8d83b3cb0f"

    @pytest.mark.parametrize(
        "change",
        [
            {"prompt": "q"}, {"negative_prompt": "n"}, {"steps": "9"}, {"guidance": "3"}, {"true_cfg": "2"},
            {"width": "64"}, {"height": "64"}, {"fit": "crop"}, {"sampler": "heun"},
        ],
        ids=lambda change: next(iter(change)),
    )  # fmt: skip
    def test_every_option_makes_another_recipe(self, change: dict[str, str]) -> None:
        assert (
            resolve_recipe({"prompt": "p", **change}, {}, DEFAULTS).id
            != resolve_recipe({"prompt": "p"}, {}, DEFAULTS).id
        )

    def test_a_lora_is_part_of_a_recipe_by_place_content_and_scale(self) -> None:
        def resolve(pin: LoraPin, **row: str) -> Recipe:
            return resolve_recipe({"prompt": "p", "lora": "style", **row}, {}, DEFAULTS, lambda name: pin)

        pin = LoraPin("/loras/style.safetensors", "a" * 64)
        recipe = resolve(pin)
        told = {key: value for key, value in json.loads(recipe.body).items() if "lora" in key}
        assert told == {"lora": pin.place, "lora_sha256": pin.sha256, "lora_scale": 1.0}
        others = [
            resolve(pin._replace(sha256="b" * 64)),
            resolve(pin._replace(place="/b")),
            resolve(pin, lora_scale="2"),
        ]
        assert len({each.id for each in (recipe, *others)}) == 4 and resolve(pin, lora_scale="1.0") == recipe

    @pytest.mark.parametrize("row", [{"lora": "style", "lora_scale": "0"}, {"lora_scale": "0.5"}])
    def test_a_lora_without_effect_changes_no_recipe(self, row: dict[str, str]) -> None:
        assert resolve_recipe({"prompt": "p", **row}, {}, DEFAULTS) == resolve_recipe({"prompt": "p"}, {}, DEFAULTS)

    def test_a_rows_lora_goes_before_the_calls(self) -> None:
        asked = {"prompt": "p", "lora": "/call", "lora_sha256": "c" * 64, "lora_scale": 0.5}
        own = json.loads(resolve_recipe({"lora": "own"}, asked, DEFAULTS, lambda name: LoraPin(name, "d" * 64)).body)
        assert (own["lora"], own["lora_sha256"], own["lora_scale"]) == ("own", "d" * 64, 0.5)
        called = json.loads(resolve_recipe({}, asked, DEFAULTS).body)
        assert (called["lora"], called["lora_sha256"]) == ("/call", "c" * 64)
        with pytest.raises(OptionError, match="cannot be opened here"):
            resolve_recipe({"lora": "own"}, asked, DEFAULTS)

    def test_the_size_asked_is_told_beside_the_body(self) -> None:
        recipe = resolve_recipe({"prompt": "p", "width": "640"}, {"height": 480}, DEFAULTS)
        assert (recipe.width, recipe.height) == (640, 480)
        assert resolve_recipe({"prompt": "p"}, {}, DEFAULTS).width is None


class TestOptions:
    @pytest.mark.parametrize(
        ("name", "text", "expected"),
        [
            ("steps", "x", "whole number"), ("steps", "2.5", "whole number"), ("steps", "0", "1 to 1000"),
            ("steps", "1001", "1 to 1000"), ("steps", "9" * 5000, "whole number"), ("steps", "1.e999", "whole number"),
            ("steps", "nan.", "whole number"), ("guidance", "nan", "0 to 100"), ("guidance", "inf", "0 to 100"),
            ("guidance", "-1", "0 to 100"), ("guidance", "1,5", "a number"), ("true_cfg", "101", "0 to 100"),
            ("width", "15", "16 to 4096"), ("height", "4097", "16 to 4096"), ("fit", "squash", "pad, crop or stretch"),
            ("sampler", "Euler", "euler, heun or dpmpp_2m"), ("preset", "flatlay", "flat-lay"),
            ("seed", "-1", "0 to 9223372036854775807"), ("seed", "9223372036854775808", "0 to 9223372036854775807"),
            ("priority", "101", "-100 to 100"), ("lora", " ", "a path, an s3:// URI or a hub id"),
            ("lora", "a\0b", "a path"), ("lora", "x" * 3_000, "a path"), ("lora_scale", "11", "-10 to 10"),
            ("lora_scale", "much", "a number"), ("prompt", "a\0b", "NUL"),
            ("prompt", "a \ud800", "surrogate"), ("negative_prompt", "\udfff", "surrogate"),
            ("deadline", "9" * 400 + "d", "10 years"), ("deadline", "99999999d", "10 years"),
            ("deadline", "3650.01d", "10 years"), ("deadline", "9999-12-31T23:59-23:59", "before 2100"),
            ("deadline", "2100-01-01T00:00+00:00", "before 2100"), ("deadline", "0001-01-01T00:00+14:00", "its zone"),
            ("prompt", "x" * (PROMPT_MAX_CHARACTERS + 1), "10,001 characters"),
        ],
        ids=lambda value: value[:12],
    )  # fmt: skip
    def test_a_wrong_value_says_what_was_expected(self, name: str, text: str, expected: str) -> None:
        with pytest.raises(OptionError) as caught:
            read_option(name, text)
        assert (caught.value.column, caught.value.code) == (name, f"bad_{name}")
        assert str(caught.value).startswith(f"{name}: ") and expected in str(caught.value)
        assert len(str(caught.value)) < 400

    @pytest.mark.parametrize(
        ("name", "text", "value"),
        [
            ("steps", "28.0", 28), ("seed", str(2**63 - 1), 2**63 - 1), ("seed", "0", 0), ("guidance", "3", 3.0),
            ("priority", "-100", -100), ("width", str(MAX_SIDE_PX), MAX_SIDE_PX), ("preset", "flat-lay", "flat-lay"),
            ("lora", " loras/style.safetensors", "loras/style.safetensors"), ("lora_scale", "-0.5", -0.5),
            ("deadline", "3650d", "3650d"), ("deadline", "2099-12-31T23:59+00:00", "2099-12-31T23:59+00:00"),
            ("prompt", "👗 \ud7ff\ue000", "👗 \ud7ff\ue000"),
        ],
    )  # fmt: skip
    def test_a_right_value_is_read(self, name: str, text: str, value: object) -> None:
        assert read_option(name, text) == value

    @given(
        st.sampled_from(sorted({**OPTIONS, **PER_JOB})), st.text(max_size=30) | st.from_regex(r"-?[0-9]+(\.[0-9]*)?")
    )
    def test_any_text_is_read_or_refused_by_name(self, name: str, text: str) -> None:
        try:
            value = read_option(name, text)
        except OptionError as error:
            assert error.column == name
        else:
            json.dumps(value, allow_nan=False)

    def test_every_column_of_a_catalogue_has_its_reader(self) -> None:
        assert set(OPTIONS) | set(PER_JOB) | {"image", "custom_id"} == set(KNOWN_COLUMNS)

    def test_every_preset_can_be_asked_for(self) -> None:
        for name, preset in PRESETS.items():
            resolved = body({"preset": name})
            assert resolved["prompt"] == preset.prompt and preset.name == name and preset.summary
