"""From a run to a checkpoint folder, and the start of the wardrobe's own checkpoint.

Owns which weights go into a shipped folder: the starting checkpoint's parts, the averaged weights of a run, half
precision on disk.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import cos, sin
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin
from peft import LoraConfig as LoraAdapter

from kontext_model.checkpoint import Checkpoint, open_checkpoint
from kontext_model.checkpoint_maker import build_parts, let_others_read, save_parts
from kontext_model.revision import CheckpointRef, Defaults
from kontext_model.training.autoencoder import AutoencoderConfig, make_autoencoder
from kontext_model.training.config import TrainingConfig
from kontext_model.training.run_state import copy_weights, read_average
from kontext_model.wardrobe import PROMPTS

WARDROBE_DEFAULTS = Defaults(area_px=256 * 256, text_length=144, steps=8, guidance=2.5)


@dataclass(frozen=True)
class TransformerConfig:
    """The small transformer's widths; the rest is FLUX's."""

    double_blocks: int = 2
    single_blocks: int = 5
    heads: int = 6
    head_width: int = 32
    axes: tuple[int, int, int] = (8, 12, 12)
    seed: int = 0


def make_transformer(config: TransformerConfig, text_width: int) -> Any:
    """A FLUX transformer that starts as the identity on its noisy latents: see `start_as_identity`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = FluxTransformer2DModel(
            in_channels=64,
            num_layers=config.double_blocks,
            num_single_layers=config.single_blocks,
            num_attention_heads=config.heads,
            attention_head_dim=config.head_width,
            axes_dims_rope=list(config.axes),
            joint_attention_dim=text_width,
            pooled_projection_dim=text_width,
            guidance_embeds=True,
        )
        start_as_identity(model)
        start_aligned(model)
    return model


def start_as_identity(model: Any) -> None:
    """Zero the modulations (adaLN-Zero, Peebles & Xie 2023) and tie output to input: learning starts at once."""
    for name, module in model.named_modules():
        if (
            isinstance(module, torch.nn.Linear)
            and (".norm" in name or name.startswith("norm_out"))
            and name.endswith("linear")
        ):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
    embed = model.x_embedder
    torch.nn.init.orthogonal_(embed.weight)
    torch.nn.init.zeros_(embed.bias)
    scale = (embed.in_features / embed.out_features) ** 0.5
    model.proj_out.weight.data.copy_(embed.weight.detach().T * scale)
    torch.nn.init.zeros_(model.proj_out.bias)


def start_aligned(model: Any, heads: tuple[int, int] = (2, 1), gain: float = 2.0) -> None:
    """Let some heads of every block look at their own place, so that copying need not be discovered.

    The first `heads[0]` heads look at that place in the condition, the next `heads[1]` in the picture itself; the
    others start as usual. A constant query and key, set by biases, make rotary attention a function of the distance
    alone.
    """
    width, rotary = model.config.attention_head_dim, model.config.axes_dims_rope
    starts = [sum(rotary[:axis]) for axis in range(3)]
    # The two fastest frequencies of y and x, and the fastest of the kind: (first channel of the pair, of the kind?).
    pairs = [(starts[0], True)] + [(starts[axis] + 2 * pair, False) for axis in (1, 2) for pair in (0, 1)]
    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        attention = block.attn
        for norm in (attention.norm_q, attention.norm_k):
            torch.nn.init.constant_(norm.weight, gain**0.5)
        for head in range(min(sum(heads), model.config.num_attention_heads)):
            rows = slice(head * width, (head + 1) * width)
            for linear in (attention.to_q, attention.to_k):
                linear.weight.data[rows] *= 0.3
                linear.bias.data[rows] = 0.0
            for channel, is_kind in pairs:
                # A query of kind 0 turned by one radian meets keys of kind 1: the fastest frequency turns one a unit.
                turn = 1.0 if is_kind and head < heads[0] else 0.0
                for linear, angle in ((attention.to_q, turn), (attention.to_k, 0.0)):
                    at = head * width + channel
                    linear.bias.data[at] = 1.5 * cos(angle)
                    linear.bias.data[at + 1] = 1.5 * sin(angle)


def start_wardrobe(folder: Path, vae: AutoencoderConfig, transformer: TransformerConfig) -> Path:
    """Write the checkpoint that wardrobe training starts from.

    Fitted encoder, fresh decoder and transformer; text encoders with seeded weights that stay as they are; tokenizers
    that know the prompts' words.
    """
    prompts = [prompt for prompts in PROMPTS.values() for prompt in prompts]
    parts = build_parts("small", seed=transformer.seed, corpus=prompts)
    parts["vae"] = make_autoencoder(vae)
    parts["transformer"] = make_transformer(transformer, parts["text_encoder_2"].config.d_model)
    return save_parts(folder, parts, WARDROBE_DEFAULTS)


def export_checkpoint(
    start: Path | CheckpointRef,
    folder: Path,
    transformer_run: Path | None = None,
    vae_run: Path | None = None,
    half: bool = True,
) -> Path:
    """Write a checkpoint: `start` with the averaged weights of these runs in place of its own; gives the folder.

    Raises FileExistsError when the folder exists and is not empty, FileNotFoundError when a run has no state,
    ValueError when it does not fit the start.
    """
    checkpoint = open_checkpoint(start)
    for model, run in ((checkpoint.transformer, transformer_run), (checkpoint.vae, vae_run)):
        if run is not None:
            copy_weights(model, read_average(run)[0])
    return save_parts(folder, _parts(checkpoint, half), checkpoint.defaults)


def export_lora(config: TrainingConfig, folder: Path) -> Path:
    """Write a LoRA run's averaged adapter as diffusers' `pytorch_lora_weights.safetensors`; gives the folder.

    Alpha is in the weights, since not every reader knows another place for it. A file of that name is replaced by the
    whole new one. Raises ValueError when the configuration trains no LoRA or another than the run's, FileNotFoundError
    when the run has no state.
    """
    if config.lora is None:
        raise ValueError("the configuration has no [lora] table: export the run as a checkpoint")
    weights, _ = read_average(Path(config.out), config.lora.terms)
    rank, strength = config.lora.rank, config.lora.alpha / config.lora.rank
    layers = {
        name.replace(".default.", "."): (value * strength if ".lora_B." in name else value).half()
        for name, value in weights.items()
    }
    adapter = LoraAdapter(r=rank, lora_alpha=rank, target_modules=list(config.lora.targets))
    with _files_replaced(folder) as made:
        FluxLoraLoaderMixin.save_lora_weights(
            made, transformer_lora_layers=layers, transformer_lora_adapter_metadata=adapter.to_dict()
        )
    return folder


def install_decoder(folder: Path, vae_run: Path) -> None:
    """Give a starting checkpoint the averaged decoder of a run, so that validation pictures can be read."""
    vae = open_checkpoint(folder, parts=frozenset({"decode"})).vae
    copy_weights(vae, read_average(vae_run)[0])
    with _files_replaced(folder / "vae") as made:
        vae.save_pretrained(str(made))


@contextmanager
def _files_replaced(folder: Path) -> Iterator[Path]:
    """A place to write files; each then replaces the one of its name in the folder, in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as temporary:
        made = Path(temporary)
        yield made
        let_others_read(made)
        for file in made.iterdir():
            file.replace(folder / file.name)


def _parts(checkpoint: Checkpoint, half: bool) -> Mapping[str, Any]:
    names = ("vae", "text_encoder", "text_encoder_2", "transformer")
    parts = {name: getattr(checkpoint, name) for name in (*names, "tokenizer", "tokenizer_2", "scheduler")}
    if half:
        for name in names:
            parts[name] = parts[name].half()
    return parts
