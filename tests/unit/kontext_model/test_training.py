"""Training: the objective's sign and densities, data errors, exact resuming, export."""

import hashlib
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline
from peft.tuners.lora import LoraLayer
from PIL import Image
from safetensors.torch import load_file, save_file

from kontext_model import KontextEditor, training
from kontext_model.canvas import Canvas
from kontext_model.checkpoint_maker import make_checkpoint
from kontext_model.lora import Adapters, open_lora
from kontext_model.training import prefill as prefilling
from kontext_model.training.autoencoder import AutoencoderConfig, make_autoencoder
from kontext_model.training.batches import sort_into_buckets
from kontext_model.training.config import (
    ConfigError,
    DataConfig,
    LoraConfig,
    Phase,
    TrainingConfig,
    ValidationConfig,
    read_config,
)  # fmt: skip
from kontext_model.training.decoder import DecoderConfig, find_plain, reconstruction_loss, train_decoder
from kontext_model.training.grid import draw_grid
from kontext_model.training.latent_cache import LatentCache, encoder_digest
from kontext_model.training.objective import (
    DENSITIES,
    WEIGHTS,
    ObjectiveConfig,
    draw_rollout_sigmas,
    draw_sigmas,
    estimate,
    flow_loss,
    flow_target,
    noised,
    roll_out,
    rollout_loss,
)  # fmt: skip
from kontext_model.training.optimizer import OPTIMIZERS
from kontext_model.training.prefill import prefill
from kontext_model.training.schedule import learning_rate
from kontext_model.training.shipping import (
    WARDROBE_DEFAULTS,
    TransformerConfig,
    export_checkpoint,
    export_lora,
    make_transformer,
)  # fmt: skip
from kontext_model.training.trainer import Trainer
from kontext_model.training.triples import TripleError, WardrobeSource, read_rows
from kontext_model.wardrobe import draw
from kontext_model.wardrobe.evaluation import HELD_OUT_SEED


def test_a_perfect_velocity_walks_noise_to_the_image() -> None:
    clean, noise = torch.randn(2, 5, 64), torch.randn(2, 5, 64)
    x, sigmas = noise, (1.0, 0.6, 0.3, 0.0)
    for sigma, following in pairwise(sigmas):
        x = x + (following - sigma) * flow_target(clean, noise)
    assert torch.allclose(x, clean, atol=1e-5)
    halfway = noised(clean, noise, torch.tensor([0.0, 1.0]))
    assert torch.equal(halfway[0], clean[0]) and torch.equal(halfway[1], noise[1])
    assert flow_loss(noise - clean, clean, noise, torch.tensor([0.2, 0.9])) == 0
    assert flow_loss(clean - noise, clean, noise, torch.tensor([0.2, 0.9])) > 1


@pytest.mark.parametrize("density", DENSITIES)
def test_densities_stay_in_range_and_are_seeded(density: str) -> None:
    config = ObjectiveConfig(density=density, scale=1.0)
    sigmas = draw_sigmas(config, 4000, torch.Generator().manual_seed(1))
    assert sigmas.min() >= 0 and sigmas.max() <= 1
    assert sigmas.mean() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(sigmas, draw_sigmas(config, 4000, torch.Generator().manual_seed(1)))
    middle = ((sigmas > 0.4) & (sigmas < 0.6)).float().mean()
    assert middle == pytest.approx(0.2, abs=0.01) if density == "uniform" else middle > 0.24


def test_a_location_moves_the_logit_normal_towards_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    assert draw_sigmas(ObjectiveConfig(location=1.0), 2000, generator).mean() > 0.65


def test_weights_are_those_of_the_paper() -> None:
    sigmas = torch.tensor([0.25, 0.5, 1.0])
    assert WEIGHTS["none"](sigmas).tolist() == [1, 1, 1]
    assert WEIGHTS["sigma_sqrt"](sigmas).tolist() == [16, 4, 1]
    assert WEIGHTS["cosmap"](torch.tensor([0.5])).item() == pytest.approx(4 / np.pi)
    with pytest.raises(ValueError, match="weight must be one of none, sigma_sqrt, cosmap, not 'x'"):
        ObjectiveConfig(weight="x")


def test_a_rollout_blames_the_model_for_where_its_own_step_led() -> None:
    clean, noise = torch.randn(2, 5, 64), torch.randn(2, 5, 64)
    levels = draw_rollout_sigmas(2, torch.Generator().manual_seed(0))

    def towards(end: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        return lambda x, sigmas: (x - end) / sigmas.view(-1, 1, 1)

    def believes_its_step(x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
        level = sigmas.view(-1, 1, 1)
        drawn = clean + 1 if bool((sigmas == 1).all()) else (x - level * noise) / (1 - level)
        return towards(drawn)(x, sigmas)

    def loss(velocity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> float:
        x = roll_out(velocity, noise, levels)
        return rollout_loss(estimate(x, velocity(x, levels), levels), clean).item()

    assert loss(towards(clean)) < 1e-9
    assert loss(towards(clean + 1)) == pytest.approx(4)
    assert loss(believes_its_step) > 0.5


def test_a_rollout_walks_from_noise_in_equal_steps() -> None:
    clean, noise, levels = torch.randn(2, 5, 64), torch.randn(2, 5, 64), torch.tensor([0.4, 0.7])
    seen: list[torch.Tensor] = []

    def constant(x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
        seen.append(sigmas)
        return noise - clean  # the straight path

    led = roll_out(constant, noise, levels, steps=3)
    assert torch.allclose(led, noised(clean, noise, levels), atol=1e-5)
    assert torch.allclose(torch.stack(seen), torch.tensor([[1.0, 1.0], [0.8, 0.9], [0.6, 0.8]]))


def test_rollouts_lead_anywhere_but_to_the_ends() -> None:
    levels = draw_rollout_sigmas(400, torch.Generator().manual_seed(0))
    assert 0.15 <= levels.min() < 0.2 and 0.8 < levels.max() <= 0.85
    with pytest.raises(ValueError, match=r"rollout must be from 0 to 1, not 1\.5"):
        ObjectiveConfig(rollout=1.5)
    with pytest.raises(ValueError, match="rollout_steps must be at least 1, not 0"):
        ObjectiveConfig(rollout_steps=0)
    with pytest.raises(ValueError, match=r"outline must be at least 0, not -1\.0"):
        ObjectiveConfig(outline=-1.0)


def test_learning_rates_warm_up_and_fall() -> None:
    rates = [learning_rate("cosine", 1.0, step, 100, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1) and rates[-1] < 0.03
    assert learning_rate("constant", 1.0, 99, 100, 10) == 1
    with pytest.raises(ValueError, match="'linear'"):
        learning_rate("linear", 1.0, 50, 100, 10)


def _write_triples(folder: Path, count: int = 3) -> Path:
    lines = []
    for number in range(count):
        sample = draw(number, 64)
        sample.photo.save(folder / f"c{number}.png")
        sample.target.save(folder / f"t{number}.png")
        lines.append({"condition": f"c{number}.png", "prompt": sample.prompt, "target": f"t{number}.png"})
    path = folder / "triples.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_rows_are_read_from_jsonl_csv_and_folders(tmp_path: Path) -> None:
    jsonl = _write_triples(tmp_path)
    table = tmp_path / "triples.csv"
    table.write_text('\ufeffcondition,prompt,target\nc0.png,"flat, please",t0.png\n', encoding="utf-8")
    assert len(read_rows(jsonl)) == 3
    assert read_rows(table).prompts(0) == ("flat, please",)
    for part in ("condition", "target"):
        (tmp_path / "pairs" / part).mkdir(parents=True)
        draw(1, 64).photo.save(tmp_path / "pairs" / part / "one.png")
    (tmp_path / "pairs" / "prompt.txt").write_text("flat lay\n", encoding="utf-8")
    assert read_rows(tmp_path / "pairs").prompts(0) == ("flat lay",)


def test_bad_rows_are_named_by_file_line_and_column(tmp_path: Path) -> None:
    jsonl = _write_triples(tmp_path)
    good = jsonl.read_text(encoding="utf-8")
    for line, message in (
        ('{"condition": "c0.png", "target": "t0.png"}', r"line 4: column 'prompt' is missing"),
        ('{"condition": "no.png", "prompt": "x", "target": "t0.png"}', r"line 4, column 'condition': no file"),
        ("{", r"line 4: not JSON"),
        ("[]", r"line 4: must be an object, not list"),
        (
            '{"condition": "c0.png", "prompt": "x", "target": "a/%s.png"}' % ("b" * 256),
            r"line 4, column 'target': .*b.png",
        ),
        (
            r'{"condition": "c0.png", "prompt": "flat \ud800", "target": "t0.png"}',
            r"line 4: column 'prompt' is no text",
        ),
    ):
        jsonl.write_text(good + "\n" + line, encoding="utf-8")
        with pytest.raises(TripleError, match=message):
            read_rows(jsonl)
    jsonl.write_text("", encoding="utf-8")
    with pytest.raises(TripleError, match="holds no triples"):
        read_rows(jsonl)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"triples.csv": b"image,prompt\n1,2\n"},
            r"triples.csv, line 1: no column condition, target; found image, prompt",
        ),
        ({"triples.csv": b"condition,prompt,target\n\xff,a,b\n"}, r"triples.csv is not UTF-8"),
        ({"triples.jsonl": b'{"prompt": "\xff"}'}, r"triples.jsonl is not UTF-8"),
        ({}, r"triples.csv cannot be read: No such file"),
        ({"condition/a.png": b"", "prompt.txt": b"x"}, r"condition/a.png: no image of that name in .*target"),
        ({"target/a.png": b"", "prompt.txt": b"x"}, r"target/a.png: no image of that name in .*condition"),
        ({"condition/a.png": b"", "target/a.jpg": b""}, r"condition/a.png: neither .*prompt/a.txt nor .*prompt.txt"),
        ({"condition/a.png": b"", "target/a.jpg": b"", "prompt.txt": b" "}, r"its prompt .*prompt.txt is empty"),
        ({"condition/a.png": b"", "condition/a.jpg": b""}, r"a.png: a.jpg has the same name; keep one of them"),
        ({"condition/x.txt": b""}, r"holds no triples"),
    ],
)
def test_what_is_wrong_with_files_is_told_with_their_names(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    table = next((name for name in files if name.startswith("triples")), "triples.csv" if not files else "")
    with pytest.raises(TripleError, match=message):
        read_rows(tmp_path / table)


def test_rows_stand_in_buckets_by_their_upright_aspect_and_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    lying = Image.Exif()
    lying[274] = 8
    lines = []
    for number, (size, exif) in enumerate([((64, 64), None), ((96, 64), None), ((96, 64), lying), ((64, 96), None)]):
        Image.new("RGB", size).save(tmp_path / f"{number}.jpg", exif=exif or Image.Exif())
        lines.append(
            json.dumps({"condition": "0.jpg", "prompt": "a\u2028b", "target": f"{number}.jpg"}, ensure_ascii=False)
        )
    path = tmp_path / "triples.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    buckets = sort_into_buckets(read_rows(path), 4096)
    assert {str(canvas): members for canvas, members in buckets.items()} == {
        "64x64": [0],
        "80x48": [1],
        "48x80": [2, 3],
    }
    (tmp_path / "0.jpg").write_bytes(b"no image")
    with pytest.raises(TripleError, match=r"line 1: condition .*0.jpg cannot be read"):
        sort_into_buckets(read_rows(path), 4096)


def test_a_broken_image_names_its_row_and_leaves_no_cache_file(tmp_path: Path) -> None:
    source = read_rows(_write_triples(tmp_path))
    whole = (tmp_path / "t1.png").read_bytes()
    (tmp_path / "t1.png").write_bytes(whole[: len(whole) // 2])
    vae = make_autoencoder(AutoencoderConfig(fit_samples=1)).eval()
    cache = LatentCache(tmp_path / "latents", vae, encoder_digest(vae))
    with pytest.raises(TripleError, match=r"line 2: target .*t1.png cannot be read"):
        cache.read(source, 1, Canvas(64, 64))
    assert not list((tmp_path / "latents").rglob("*.*"))


@pytest.mark.parametrize("exif", [b"no TIFF, whatever it is", b"II*\0"])
def test_a_picture_whose_exif_is_broken_names_its_row(tmp_path: Path, exif: bytes) -> None:
    path = _write_triples(tmp_path)
    Image.new("RGB", (64, 64)).save(tmp_path / "t1.png", exif=exif)
    with pytest.raises(TripleError, match=r"triples.jsonl, line 2: target .*t1.png cannot be read"):
        sort_into_buckets(read_rows(path), 4096)


def test_cached_latents_equal_fresh_ones_and_depend_on_the_encoder_only(tmp_path: Path) -> None:
    vae = make_autoencoder(AutoencoderConfig(fit_samples=1)).eval()
    cache = LatentCache(tmp_path, vae, encoder_digest(vae))
    source, canvas = WardrobeSource(2), Canvas(64, 64)
    fresh = cache.read(source, 1, canvas)
    again = cache.read(source, 1, canvas)
    assert all(torch.equal(one, other) for one, other in zip(fresh, again, strict=True))
    assert fresh[0].shape == (16, 8, 8) and fresh[0].dtype == torch.float16
    digest = encoder_digest(vae)
    with torch.no_grad():
        vae.decoder.conv_in.weight.add_(1)
        assert encoder_digest(vae) == digest
        vae.encoder.conv_in.weight.add_(1)
        assert encoder_digest(vae) != digest


def test_the_fitted_encoder_is_linear_and_keeps_most_of_a_picture() -> None:
    vae = make_autoencoder(AutoencoderConfig(fit_samples=8)).eval()
    samples = [draw(seed, 128) for seed in range(4)]
    pictures = np.stack([np.asarray(picture) for sample in samples for picture in (sample.photo, sample.target)])
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode()
        middle = vae.encode((pixels[:1] + pixels[1:2]) / 2).latent_dist.mode()
    assert torch.allclose(middle, (latents[:1] + latents[1:2]) / 2, atol=0.05)
    rows = latents.permute(0, 2, 3, 1).reshape(-1, 16).double()
    rows = torch.cat((rows, torch.ones(len(rows), 1, dtype=torch.float64)), dim=1)
    patches = torch.nn.functional.pixel_unshuffle(pixels, 8).permute(0, 2, 3, 1).reshape(-1, 192).double()
    restored = rows @ torch.linalg.lstsq(rows, patches).solution
    assert 10 * torch.log10(4 / (restored - patches).square().mean()) > 24


def test_a_killed_decoder_run_resumes_to_the_weights_of_an_unbroken_one(tmp_path: Path) -> None:
    config = DecoderConfig(AutoencoderConfig(fit_samples=1), crop_steps=2, whole_steps=2, batch=2, crop_px=32)
    fresh = dict(make_autoencoder(config.vae).named_parameters())
    whole = train_decoder(tmp_path / "whole", config, report=lambda line: None)
    for stop in (1, 3, None):  # among the crops, among the whole pictures
        resumed = train_decoder(tmp_path / "parts", config, report=lambda line: None, until=stop)
    for (name, one), other in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other), name
        assert name.startswith("decoder") or torch.equal(one, fresh[name]), f"{name} must stay as fitted"
    assert not torch.equal(whole.decoder.conv_in.weight, fresh["decoder.conv_in.weight"])


def test_the_decoder_is_asked_above_all_for_a_plain_ground() -> None:
    pixels = torch.ones(1, 3, 32, 32)
    pixels[:, :, 8:24, 8:24] = torch.rand(1, 3, 16, 16)
    assert find_plain(pixels)[0, 0, 2, 2] == 1 and find_plain(pixels)[0, 0, 16, 16] == 0
    stained, blurred = pixels.clone(), pixels.clone()
    stained[:, :, :3, :3] -= 0.1
    blurred[:, :, 14:17, 14:17] -= 0.1
    assert reconstruction_loss(stained, pixels) > reconstruction_loss(blurred, pixels) > 0


def _config(folder: Path, start: Path, **changes: object) -> TrainingConfig:
    config = TrainingConfig(
        checkpoint=str(start),
        out=str(folder),
        phases=(Phase(64 * 64, 3, 2, 1e-3, warmup=1), Phase(96 * 96, 3, 2, 1e-3, "constant", 1)),
        data=DataConfig(count=6),
        validation=ValidationConfig(every=0, count=2, steps=1),
        prompt_dropout=0.3,
        guidance=(1.0, 4.0),
        save_every_s=1e9,
    )
    return replace(config, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("start") / "tiny", size="tiny")


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, alpha=2.0)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_killed_run_resumes_to_the_weights_of_an_unbroken_one(
    tmp_path: Path, start: Path, lora: LoraConfig | None, optimizer: str
) -> None:
    config = _config(tmp_path / "a", start, lora=lora, accumulation=2, optimizer=optimizer)
    unbroken = Trainer(config, report=lambda line: None)
    unbroken.train()
    broken = replace(config, out=str(tmp_path / "b"))
    Trainer(broken, report=lambda line: None).train(until=2)
    resumed = Trainer(broken, report=lambda line: None)
    assert resumed.step == 2
    resumed.train()
    assert resumed.step == unbroken.step == 6
    assert len(unbroken.weights) > 4
    for name, value in unbroken.weights.items():
        assert torch.equal(value, resumed.weights[name]), name
        assert torch.equal(unbroken.average.shadow[name], resumed.average.shadow[name]), name


def test_muon_turns_the_matrices_of_blocks_by_one_measure_in_every_direction(tmp_path: Path, start: Path) -> None:
    def move(optimizer: str) -> dict[str, torch.Tensor]:
        phase = Phase(64 * 64, 1, 2, 1e-3, "constant", warmup=0)
        config = _config(tmp_path / optimizer, start, phases=(phase,), optimizer=optimizer, weight_decay=0.0)
        trainer = Trainer(config, report=lambda line: None)
        before = {name: value.detach().clone() for name, value in trainer.weights.items()}
        trainer.train()
        return {name: trainer.weights[name].detach() - value for name, value in before.items()}

    muon, adamw = move("muon"), move("adamw")
    name = "transformer_blocks.0.ff.net.0.proj.weight"
    spread = {key: torch.linalg.svdvals(moves[name]) for key, moves in (("muon", muon), ("adamw", adamw))}
    assert spread["muon"].max() < 3 * spread["muon"].min(), "every direction moves alike"
    assert spread["adamw"].max() > 6 * spread["adamw"].min()
    sizes = [moves[name].square().mean().sqrt().item() for moves in (muon, adamw)]
    assert 0.1 < sizes[0] / sizes[1] < 1, "about as far as AdamW, whose first step is the rate everywhere"
    for key, value in muon.items():
        if "blocks" not in key or "norm" in key or value.dim() != 2:
            assert torch.equal(value, adamw[key]), f"{key} is AdamW's"


def test_a_run_does_not_go_on_with_another_optimizer(tmp_path: Path, start: Path) -> None:
    config = _config(tmp_path, start)
    Trainer(config, report=lambda line: None).train(until=1)
    with pytest.raises(ValueError, match=r"state\.pt was trained with another `optimizer`.* name another `out`"):
        Trainer(replace(config, optimizer="muon"), report=lambda line: None)


def test_a_phase_may_read_only_how_a_prompt_begins(tmp_path: Path, start: Path) -> None:
    trainer = Trainer(_config(tmp_path, start), report=lambda line: None)
    phase = trainer.config.phases[0]
    whole, short = (trainer.batches.draw(replace(phase, text_length=length), 0, 0) for length in (None, 5))
    assert short.embeds.sequence.shape[1] == 5 < whole.embeds.sequence.shape[1]
    assert torch.equal(short.embeds.sequence, whole.embeds.sequence[:, :5])
    assert torch.equal(short.embeds.pooled, whole.embeds.pooled)


def test_training_lowers_the_loss(tmp_path: Path, start: Path) -> None:
    phase = Phase(64 * 64, 60, 4, 5e-3, "constant", 5)
    losses: list[float] = []
    trainer = Trainer(_config(tmp_path, start, phases=(phase,), prompt_dropout=0.0), report=lambda line: None)
    while trainer.step < 60:
        losses.append(trainer._take_step())
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])


def test_a_grid_shows_condition_result_and_target(tmp_path: Path, start: Path) -> None:
    trainer = Trainer(_config(tmp_path, start), report=lambda line: None)
    before = {name: value.detach().clone() for name, value in trainer.weights.items()}
    path = draw_grid(trainer)
    with Image.open(path) as sheet:
        assert sheet.width > 6 * 48 and path.name == "step-000000.png"
    assert all(torch.equal(value, before[name]) for name, value in trainer.weights.items())


def test_an_exported_checkpoint_opens_and_carries_the_averaged_weights(tmp_path: Path, start: Path) -> None:
    trainer = Trainer(_config(tmp_path / "run", start), report=lambda line: None)
    trainer.train()
    folder = export_checkpoint(start, tmp_path / "out", transformer_run=tmp_path / "run")
    editor = KontextEditor.open(folder)
    weights = dict(editor.checkpoint.transformer.named_parameters())
    for name, value in trainer.average.shadow.items():
        assert torch.equal(weights[name], value.half().float()), name
    with pytest.raises(FileExistsError):
        export_checkpoint(start, folder)


def test_a_fresh_transformer_hands_its_noise_through() -> None:
    model = make_transformer(TransformerConfig(heads=4), 32)
    x = torch.randn(2, 8, 64)
    with torch.no_grad():
        out = model(
            hidden_states=x,
            timestep=torch.full((2,), 0.9),
            guidance=torch.full((2,), 2.5),
            pooled_projections=torch.randn(2, 32),
            encoder_hidden_states=torch.randn(2, 4, 32),
            txt_ids=torch.zeros(4, 3),
            img_ids=torch.zeros(8, 3),
            return_dict=False,
        )[0]
    assert torch.nn.functional.cosine_similarity(out.flatten(), x.flatten(), dim=0) > 0.97


HEAD = "checkpoint = 'a'\nout = 'b'\n"
PHASE = "[[phases]]\narea_px = 4096\nsteps = 2\nbatch = 1\nrate = 1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chekpoint = 'x'", "unknown key 'chekpoint'"),
        (HEAD + "phases = []", "at least one phase"),
        ("checkpoint = 'a'\n" + PHASE, "the key 'out' is missing"),
        (HEAD + PHASE + PHASE.replace("batch = 1", "batch = 0"), r"phases\[1\].batch must be at least 1, not 0"),
        (HEAD + PHASE.replace("rate = 1", "rate = 1\nschedule = 'linear'"), r"phases\[0\].schedule must be one"),
        (HEAD + PHASE.replace("rate = 1\n", ""), r"the key 'phases\[0\].rate' is missing"),
        (HEAD + "[lora]\nrank = 0\n" + PHASE, r"lora.rank must be at least 1, not 0"),
        (HEAD + "[data]\nfit = 'squeeze'\n" + PHASE, r"data.fit must be one of pad, crop, stretch, not 'squeeze'"),
        (HEAD + "guidance = [4.0, 1.0]\n" + PHASE, r"guidance must be one value from 0, or two that rise"),
        (HEAD + "prompt_dropout = 1.5\n" + PHASE, r"prompt_dropout must be from 0 to 1"),
        (HEAD + "precision = 'fp16'\n" + PHASE, r"precision must be one of float32, bfloat16, not 'fp16'"),
        (HEAD + "seed = '1'\n" + PHASE, "seed must be of type int"),
        (HEAD + PHASE.replace("steps = 2", "steps = true"), "steps must be of type int"),
        (HEAD + "[objective]\ndensity = 'x'\n" + PHASE, r"objective.density must be one of uniform"),
        ("x = [", "train.toml"),
    ],
)  # fmt: skip
def test_a_wrong_configuration_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "train.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_config(path)


def test_a_configuration_reads_whole(tmp_path: Path) -> None:
    path = tmp_path / "train.toml"
    path.write_text(
        HEAD + "betas = [0.9, 0.95]\n[lora]\nrank = 4\n" + PHASE + PHASE.replace("steps = 2", "steps = 3"),
        encoding="utf-8",
    )
    config = read_config(path)
    assert config.steps == 5 and config.phases[0].rate == 1.0 and config.lora == LoraConfig(rank=4)
    assert config.phase_at(3) == (config.phases[1], 1)


def _list_changes(transformer: Any) -> dict[str, torch.Tensor]:
    """What the one adapter of a transformer adds to the weights, by layer."""
    [adapter] = transformer.peft_config
    layers = {name: each for name, each in transformer.named_modules() if isinstance(each, LoraLayer)}
    return {name: each.get_delta_weight(adapter).detach().float() for name, each in layers.items()}


def test_an_exported_lora_counts_as_much_for_every_reader_as_it_did_in_training(tmp_path: Path, start: Path) -> None:
    config = _config(tmp_path / "run", start, lora=LoraConfig(rank=2, alpha=6.0))
    trainer = Trainer(config, report=lambda line: None)
    trainer.train()
    with trainer.average.applied(trainer.model):
        trained = _list_changes(trainer.model)
    [file] = export_lora(config, tmp_path / "lora").iterdir()
    (tmp_path / "bare").mkdir()
    save_file(load_file(file), tmp_path / "bare" / file.name)  # as a reader that knows no metadata sees it
    for folder in (file.parent, tmp_path / "bare"):
        pipeline = FluxKontextPipeline.from_pretrained(start)
        pipeline.load_lora_weights(folder)
        own = KontextEditor.open(start).checkpoint.transformer
        with Adapters(own).applied(open_lora(folder)):
            for loaded in (_list_changes(pipeline.transformer), _list_changes(own)):
                assert loaded.keys() == trained.keys()
                for name, change in trained.items():
                    off = (loaded[name] - change).abs().max()
                    assert off < 0.002 * change.abs().max(), f"{name}: half precision's rounding at most"
    assert file.stat().st_mode & 0o777 == 0o644, "others may read it"
    with pytest.raises(ValueError, match=r"no \[lora\] table"):
        export_lora(replace(config, lora=None), tmp_path / "none")


def test_prefilled_latents_are_what_training_reads(tmp_path: Path, start: Path) -> None:
    config = _config(tmp_path / "run", start)
    assert prefill(config, 1, report=lambda line: None) == 12
    files = sorted(path.stat().st_mtime_ns for path in (tmp_path / "run" / "latents").rglob("*.safetensors"))
    assert len(files) == 12
    Trainer(config, report=lambda line: None).train()
    assert files == sorted(path.stat().st_mtime_ns for path in (tmp_path / "run" / "latents").rglob("*.safetensors"))


@pytest.fixture
def encoders_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders that are a thread of this process; one, as opening a model is nothing for several."""
    monkeypatch.setattr(prefilling, "ProcessPoolExecutor", lambda workers, **_: ThreadPoolExecutor(1))


@pytest.mark.usefixtures("encoders_here")
def test_encoders_read_a_checkpoints_files_once_to_know_its_revision(
    tmp_path: Path, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: hashed.append(file.name) or digest(file, kind))
    config = _config(tmp_path / "run", start)
    assert prefill(config, 2, report=lambda line: None) == 12
    assert hashed and len(hashed) == len(set(hashed))
    hashed.clear()
    Trainer(config, report=lambda line: None)
    assert not hashed, "training knows it already"


@pytest.mark.usefixtures("encoders_here")
def test_encoders_stop_soon_after_an_image_that_cannot_be_read(
    tmp_path: Path, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = json.loads(_write_triples(tmp_path, count=1).read_text(encoding="utf-8"))
    for number in range(1, 200):
        shutil.copyfile(tmp_path / "t0.png", tmp_path / f"t{number}.png")
    whole = (tmp_path / "c0.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    rows = [{**row, "condition": "half.png"}, *({**row, "target": f"t{number}.png"} for number in range(1, 200))]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    read = LatentCache.read
    monkeypatch.setattr(LatentCache, "read", lambda *given: (sleep(0.005), read(*given))[1])
    with pytest.raises(TripleError, match=r"line 1: condition .*half.png cannot be read"):
        prefill(_config(tmp_path / "run", start, data=DataConfig(str(path))), 2, report=lambda line: None)
    assert len(list((tmp_path / "run" / "latents").rglob("*.safetensors"))) < 90


def test_the_shipped_recipe_reads() -> None:
    config = read_config(Path(training.__file__).with_name("wardrobe_small.toml"))
    assert config.phases[-1].area_px == WARDROBE_DEFAULTS.area_px
    drawn = sum(phase.fresh * phase.steps for phase in config.phases)
    assert config.data.first_seed + drawn < 5_000_000, "where other seeds begin"
    assert HELD_OUT_SEED > 60_000_000
