"""The editor against the reference pipeline, its batches against single calls, its stages against the whole."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kontext_model import Edit, KontextEditor, latents
from kontext_model.canvas import Canvas
from kontext_model.revision import CheckpointError

Draw = Callable[..., Image.Image]
PROMPT = "Flat lay of the clothes on a pure white background."


def _difference(one: Image.Image, other: Image.Image) -> np.ndarray[Any, Any]:
    assert one.size == other.size and one.mode == other.mode == "RGB"
    return np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int))


def _run_pipeline(pipeline: Any, photo: Image.Image, edit: Edit, canvas: Canvas, output_type: str) -> Any:
    return pipeline(
        image=photo,
        prompt=edit.prompt,
        negative_prompt=edit.negative_prompt,
        true_cfg_scale=edit.true_cfg,
        width=canvas.width_px,
        height=canvas.height_px,
        max_area=canvas.area_px,
        _auto_resize=False,
        num_inference_steps=edit.steps,
        guidance_scale=edit.guidance,
        generator=torch.Generator().manual_seed(edit.seed),
        max_sequence_length=16,
        output_type=output_type,
    ).images


EDITS = {
    "plain": Edit(PROMPT, seed=7, steps=4, guidance=2.5),
    "true_cfg": Edit(PROMPT, seed=8, steps=3, guidance=1.0, true_cfg=3.0, negative_prompt="shoes, people"),
    "empty_negative": Edit(PROMPT, seed=9, steps=2, guidance=4.0, true_cfg=2.0, negative_prompt=""),
    "no_effect_negative": Edit(PROMPT, seed=2**40, steps=1, guidance=2.5, true_cfg=1.0, negative_prompt="shoes"),
}


@pytest.mark.parametrize("canvas", [Canvas(64, 64), Canvas(48, 96), Canvas(96, 48)], ids=str)
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_it_equals_the_pipeline(
    editor: KontextEditor, pipeline: Any, draw_photo: Draw, canvas: Canvas, edit: Edit
) -> None:
    photo = draw_photo(canvas.width_px, canvas.height_px)
    assert edit.steps is not None and edit.guidance is not None
    found = editor.sample(
        editor.encode_images([photo], canvas),
        editor.encode_text([edit.prompt]),
        canvas,
        [edit.seed],
        edit.steps,
        edit.guidance,
        edit.true_cfg,
        None if edit.negative is None else editor.encode_text([edit.negative]),
    )
    expected = _run_pipeline(pipeline, photo, edit, canvas, "latent")
    assert (found - expected).abs().max() <= 1e-5
    sized = replace(edit, width=canvas.width_px, height=canvas.height_px)
    picture = editor([photo], [sized])[0]
    assert _difference(picture, _run_pipeline(pipeline, photo, edit, canvas, "pil")[0]).max() <= 1
    assert np.asarray(picture).std() > 5, "the pictures must vary, or equality proves nothing"


def test_a_large_photo_is_resized_as_the_pipeline_does(editor: KontextEditor, pipeline: Any, draw_photo: Draw) -> None:
    photo, canvas = draw_photo(301, 300), Canvas(64, 64)
    edit = EDITS["plain"]
    expected = _run_pipeline(pipeline, photo.resize((64, 64), Image.Resampling.LANCZOS), edit, canvas, "pil")[0]
    assert _difference(editor([photo], [edit])[0], expected).max() <= 1


@pytest.mark.parametrize("true_cfg", [1.0, 3.3])
def test_bfloat16_equals_the_pipeline(tiny_folder: Path, pipeline: Any, draw_photo: Draw, true_cfg: float) -> None:
    """Ten of these 28 timesteps are rounded otherwise when the casts stand in another order; bfloat16 has no 3.3."""
    canvas, edit, photo = Canvas(64, 48), EDITS["plain"], draw_photo(64, 48)
    editor = KontextEditor.open(tiny_folder, dtype="bfloat16")
    noise = latents.pack(latents.draw_noise(edit.seed, canvas)).bfloat16()
    condition, text = editor.encode_images([photo], canvas), editor.encode_text([edit.prompt])
    negative = editor.encode_text(["shoes"]) if true_cfg > 1 else None
    found = editor.sample(condition, text, canvas, [edit.seed], 28, 2.5, true_cfg, negative)
    assert found.dtype == torch.bfloat16
    reference = pipeline.from_pipe(pipeline)
    reference.set_progress_bar_config(disable=True)
    reference.register_modules(transformer=editor.checkpoint.transformer, vae=editor.checkpoint.vae)
    expected = reference(
        image=latents.unpack(condition, canvas),
        latents=noise,
        prompt_embeds=text.sequence,
        pooled_prompt_embeds=text.pooled,
        negative_prompt_embeds=None if negative is None else negative.sequence,
        negative_pooled_prompt_embeds=None if negative is None else negative.pooled,
        true_cfg_scale=true_cfg,
        width=64,
        height=48,
        max_area=64 * 48,
        num_inference_steps=28,
        guidance_scale=2.5,
        output_type="latent",
    ).images
    assert torch.equal(found, expected)


# Sizes, seeds, prompts, guidance, steps, samplers, true CFG and fits, mixed in one call.
MIXED: tuple[tuple[tuple[int, int], Edit], ...] = (
    ((64, 64), Edit(PROMPT, seed=1)),
    ((64, 64), Edit("on light grey", seed=2, guidance=7.0)),
    ((64, 64), Edit(PROMPT, seed=1, steps=5)),
    ((60, 120), Edit(PROMPT, seed=3)),
    ((120, 60), Edit("", seed=4, sampler="heun")),
    ((64, 64), Edit(PROMPT, seed=5, true_cfg=2.0, negative_prompt="shoes")),
    ((64, 64), Edit("on light grey", seed=6, true_cfg=5.0, negative_prompt="")),
    ((64, 64), Edit(PROMPT, seed=7, guidance=0.0)),
    ((200, 50), Edit(PROMPT, seed=8, sampler="dpmpp_2m", fit="crop", width=64, height=64)),
    ((200, 50), Edit(PROMPT, seed=8, fit="pad", width=64, height=64)),
    ((200, 50), Edit(PROMPT, seed=8, fit="stretch", width=64)),
)


def test_each_of_a_mixed_batch_equals_its_single_call(editor: KontextEditor, draw_photo: Draw) -> None:
    photos = [draw_photo(*size, number=number) for number, (size, _) in enumerate(MIXED)]
    edits = [edit for _, edit in MIXED]
    together = editor(photos, edits)
    alone = [editor([photo], [edit])[0] for photo, edit in zip(photos, edits, strict=True)]
    for picture, single in zip(together, alone, strict=True):
        difference = _difference(picture, single)
        assert difference.max() <= 2 and (difference <= 1).mean() >= 0.999
    assert [each.size for each in together[:5]] == [(64, 64)] * 3 + [(48, 96), (96, 48)]
    pictures = {np.asarray(each).tobytes() for each in together}
    assert len(pictures) == len(MIXED), "every edit here asks for another picture"


def test_each_row_of_a_batch_equals_its_single_call(editor: KontextEditor, draw_photo: Draw) -> None:
    canvas, seeds = Canvas(64, 64), [3, 1, 4, 1, 5, 9, 2, 6, 5]
    guidance, true_cfg = [float(i) for i in range(9)], [1.5 + i for i in range(9)]
    condition = editor.encode_images([draw_photo(64, 64, number=i) for i in range(9)], canvas)
    text = editor.encode_text([f"prompt {i}" for i in range(9)])
    negative = editor.encode_text(["shoes"])
    together = editor.sample(condition, text, canvas, seeds, 4, guidance, true_cfg, negative)
    for row in range(9):
        own = editor.encode_text([f"prompt {row}"])
        single = editor.sample(
            condition[row : row + 1], own, canvas, [seeds[row]], 4, guidance[row], true_cfg[row], negative
        )
        assert (together[row] - single[0]).abs().max() <= 1e-4
    assert (together[1] - together[3]).abs().max() > 1e-2


def test_encoding_and_decoding_are_bit_equal_whatever_the_batch(editor: KontextEditor, draw_photo: Draw) -> None:
    canvas = Canvas(64, 48)
    photos = [draw_photo(64, 48, number=i) for i in range(5)]
    condition = editor.encode_images(photos, canvas)
    assert condition.shape == (5, canvas.tokens, 64)
    pictures = editor.decode(condition, canvas)
    for row, photo in enumerate(photos):
        assert torch.equal(editor.encode_images([photo], canvas)[0], condition[row])
        assert not _difference(editor.decode(condition[row : row + 1], canvas)[0], pictures[row]).any()


def test_the_noise_is_bit_equal_whatever_the_batch(
    editor: KontextEditor, monkeypatch: pytest.MonkeyPatch, draw_photo: Draw
) -> None:
    """Seen at the transformer's door: the first half of its tokens at the first step is the noise."""
    doors: list[torch.Tensor] = []
    forward = type(editor.checkpoint.transformer).forward

    def watch(self: Any, *args: Any, **kwargs: Any) -> Any:
        doors.append(kwargs["hidden_states"])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(editor.checkpoint.transformer), "forward", watch)
    canvas, text = Canvas(64, 64), editor.encode_text(["a"])
    condition = editor.encode_images([draw_photo(64, 64)], canvas).expand(3, -1, -1)
    torch.manual_seed(0)
    editor.sample(condition, text, canvas, [5, 6, 7], 1, 2.5)
    torch.manual_seed(1)
    editor.sample(condition[:1], text, canvas, [6], 1, 2.5)
    batched, alone = torch.cat(doors).split((3, 1))
    assert torch.equal(batched[1, :16], alone[0, :16])
    assert torch.equal(alone[0, :16], latents.pack(latents.draw_noise(6, canvas))[0])


def test_the_stages_apart_equal_the_call(tiny_folder: Path, editor: KontextEditor, draw_photo: Draw) -> None:
    """Three editors, each with its own part, as three processes would have."""
    encoder, sampler, decoder = (
        KontextEditor.open(tiny_folder, parts=frozenset({part})) for part in ("encode", "sample", "decode")
    )
    photo, canvas = draw_photo(100, 60), Canvas(80, 48)
    edit = Edit(PROMPT, seed=5, steps=3, true_cfg=2.0, negative_prompt="shoes")
    condition, text = encoder.encode_images([photo], canvas, edit.fit), encoder.encode_text([edit.prompt])
    tokens = sampler.sample(
        condition, text, canvas, [5], 3, sampler.defaults.guidance, 2.0, encoder.encode_text(["shoes"])
    )
    for tensor in (condition, text.pooled, text.sequence, tokens):
        assert tensor.is_contiguous() and not tensor.requires_grad and tensor.device == editor.checkpoint.device
    picture = decoder.decode(tokens, canvas)[0]
    assert not _difference(picture, editor([photo], [edit])[0]).any()
    assert {each.revision for each in (encoder, sampler, decoder)} == {editor.revision}


def test_a_stage_without_its_part_says_so(tiny_folder: Path, draw_photo: Draw) -> None:
    canvas, decoder = Canvas(32, 32), KontextEditor.open(tiny_folder, parts=frozenset({"decode"}))
    sampler = KontextEditor.open(tiny_folder, parts=frozenset({"sample"}))
    tokens = torch.zeros(1, 4, 64)
    with pytest.raises(CheckpointError, match="opened without its 'encode' part"):
        decoder.encode_text(["a"])
    with pytest.raises(CheckpointError, match="opened without its 'encode' part"):
        decoder.encode_images([draw_photo(32, 32)], canvas)
    with pytest.raises(CheckpointError, match="opened without its 'sample' part"):
        decoder.sample(tokens, None, canvas, [0], 1, 1.0)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="opened without its 'decode' part"):
        sampler.decode(tokens, canvas)


def test_silence_of_an_edit_takes_the_checkpoints_defaults(editor: KontextEditor, draw_photo: Draw) -> None:
    photo = draw_photo(64, 64)
    silent = editor([photo], [Edit(PROMPT)])[0]
    spoken = editor([photo], [Edit(PROMPT, steps=2, guidance=2.5, width=64, height=64)])[0]
    assert not _difference(silent, spoken).any()


def test_odd_photos_are_edited_upright(editor: KontextEditor, draw_photo: Draw) -> None:
    photo = draw_photo(96, 48)
    turned = photo.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6
    assert not _difference(editor([turned], [Edit(PROMPT)])[0], editor([photo], [Edit(PROMPT)])[0]).any()
    assert editor([Image.new("LA", (1, 5000))], [Edit(PROMPT)])[0].size == (48, 96)


def test_nothing_asked_is_nothing_made(editor: KontextEditor) -> None:
    assert editor([], []) == []


def test_lengths_that_differ_are_an_error(editor: KontextEditor, draw_photo: Draw) -> None:
    with pytest.raises(ValueError, match="2 images do not pair with 1 edits"):
        editor([draw_photo(32, 32)] * 2, [Edit(PROMPT)])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", -1, "seed must be from 0 to 2\\*\\*63 - 1, not -1"),
        ("seed", 2**63, "seed must be from 0"),
        ("steps", 0, "steps must be at least 1, not 0"),
        ("guidance", float("nan"), "guidance must be a number from 0, not nan"),
        ("true_cfg", -1.0, "true_cfg must be a number from 0, not -1"),
        ("fit", "squeeze", "fit must be one of pad, crop, stretch, not 'squeeze'"),
        ("sampler", "ddim", "sampler must be one of euler, heun, dpmpp_2m, not 'ddim'"),
    ],
)
def test_an_edit_that_cannot_be_meant_is_an_error(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Edit(PROMPT, **{field: value})


def test_shapes_that_do_not_fit_are_errors(editor: KontextEditor) -> None:
    canvas, text = Canvas(32, 32), editor.encode_text(["a", "b"])
    condition = torch.zeros(3, 4, 64)
    with pytest.raises(ValueError, match=r"2 seeds on canvas 32x32 need a condition of \(2, 4, 64\), not \(3, 4, 64\)"):
        editor.sample(condition, text, canvas, [1, 2], 1, 1.0)
    with pytest.raises(ValueError, match="2 texts do not fit 3 images"):
        editor.sample(condition, text, canvas, [1, 2, 3], 1, 1.0)
    with pytest.raises(ValueError, match="2 values of guidance do not fit 3 images"):
        editor.sample(condition, text, canvas, [1, 2, 3], 1, [1.0, 2.0])
    with pytest.raises(ValueError, match="steps must be at least 1"):
        editor.sample(condition[:2], text, canvas, [1, 2], 0, 1.0)
    with pytest.raises(ValueError, match="sampler must be one of"):
        editor.sample(condition[:2], text, canvas, [1, 2], 1, 1.0, sampler="ddim")
    with pytest.raises(ValueError, match="a canvas of 64x32 has 8 tokens, not 4"):
        editor.decode(condition, Canvas(64, 32))


def test_latents_that_overflowed_are_not_a_black_picture(editor: KontextEditor) -> None:
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        editor.decode(torch.full((1, 4, 64), float("nan")), Canvas(32, 32))
