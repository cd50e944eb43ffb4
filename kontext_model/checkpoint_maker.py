"""Makes small checkpoints of the real classes, with random weights.

Owns their sizes and their tokenizers. A folder it makes has the layout of FLUX.1-Kontext-dev, opens in
`diffusers.FluxKontextPipeline` as in `KontextEditor`, and is the same to the byte whenever it is made. Needs no
network.
"""

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from kontext_model.canvas import REFERENCE_AREA_PX
from kontext_model.checkpoint import silence
from kontext_model.latents import CHANNELS, TOKEN_CHANNELS
from kontext_model.revision import Defaults
from kontext_model.text import CLIP_LENGTH

VOCABULARY = """
transform turn make change replace remove add keep extract ignore output complete flatten edit put show give use fill
the a an of to into on in with without for and or not no only all same this that other it its is are be must at by from
input photo picture image product shot flat lay flatlay person people man woman child model wearing wears worn body hand
human hands arms face hair skin pose clothes clothing garment garments outfit set single top tops pants trousers jeans
shorts skirt dress shirt t-shirt tee blouse sweater hoodie jacket coat cardigan vest suit shoes jewelry bags hat scarf
items collar sleeve sleeves neck neckline hem pocket pockets button buttons zip logo print prints stripe stripes striped
dot dots dotted check checks checked plain pattern patterns floral cotton denim wool leather silk knit long short wide
color colors colour colours white black grey gray light dark pale bright red orange yellow green blue sky navy purple
pink brown beige cream olive teal maroon gold silver pure clean soft studio lighting shadow shadows professional
commercial grade commercial-grade virtually remove perspective distortion hidden parts contours design features accurate
symmetrical perfectly front front-facing facing sharp details correct transparent background backgrounds remnants
artifacts preferred png ai replace before behind under over left right centre center new old style texture fabric
"""
MODEL_INDEX = MappingProxyType(
    {
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
)
_WORD = re.compile(r"[A-Za-z]+")
_PRINTABLE = tuple(chr(code) for code in range(33, 127))


@dataclass(frozen=True)
class _Size:
    """The configurations of one size; the widths that two parts must agree on stand once."""

    defaults: Defaults
    text_width: int
    text_layers: int
    pieces: int
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]


_SIZES = MappingProxyType(
    {
        "tiny": _Size(
            defaults=Defaults(area_px=64 * 64, text_length=16, steps=2, guidance=2.5),
            text_width=32,
            text_layers=1,
            pieces=64,
            transformer={
                "num_layers": 1,
                "num_single_layers": 1,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "axes_dims_rope": [4, 6, 6],
            },
            vae={
                "block_out_channels": [8, 8, 8, 8],
                "layers_per_block": 1,
                "norm_num_groups": 4,
                "scaling_factor": 0.3611,
                "shift_factor": 0.1159,
            },
        ),
        "small": _Size(
            defaults=Defaults(area_px=256 * 256, text_length=64, steps=8, guidance=2.5),
            text_width=128,
            text_layers=2,
            pieces=512,
            transformer={
                "num_layers": 2,
                "num_single_layers": 4,
                "num_attention_heads": 6,
                "attention_head_dim": 32,
                "axes_dims_rope": [8, 12, 12],
            },
            vae={
                "block_out_channels": [16, 32, 64, 96],
                "layers_per_block": 2,
                "norm_num_groups": 8,
                "scaling_factor": 0.3611,
                "shift_factor": 0.1159,
            },
        ),
    }
)


def make_checkpoint(
    folder: Path,
    *,
    size: str = "tiny",
    area_px: int | None = None,
    text_length: int | None = None,
    seed: int = 0,
    corpus: Iterable[str] = (),
) -> Path:
    """Write a checkpoint folder with random weights and return it.

    `tiny` (64², one double and one single block) is for tests, `small` (256², 5 M parameters in the transformer) edits
    a picture in about a second. `area_px` and `text_length` go into its `kontext.json`; the words of `corpus` get
    tokens of their own. The folder appears whole or not at all. Raises ValueError for another size, FileExistsError
    when the folder exists and is not empty.
    """
    if size not in _SIZES:
        raise ValueError(f"size must be one of {', '.join(_SIZES)}, not {size!r}")
    chosen = _SIZES[size].defaults
    defaults = replace(
        chosen,
        area_px=chosen.area_px if area_px is None else area_px,
        text_length=chosen.text_length if text_length is None else text_length,
    )
    return save_parts(Path(folder), build_parts(size, seed=seed, corpus=corpus), defaults)


def build_parts(size: str, *, seed: int = 0, corpus: Iterable[str] = ()) -> dict[str, Any]:
    """The components of a size by part, with seeded random weights; the caller's random state is left as it was."""
    sizes = _SIZES[size]
    words = _list_words(corpus)
    tokenizer, tokenizer_2 = _make_clip_tokenizer(words, sizes.pieces), _make_t5_tokenizer(words)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {
            "vae": _make_vae(sizes),
            "text_encoder": _make_clip(sizes, tokenizer),
            "text_encoder_2": _make_t5(sizes, tokenizer_2),
            "transformer": _make_transformer(sizes),
            "tokenizer": tokenizer,
            "tokenizer_2": tokenizer_2,
            "scheduler": _make_scheduler(),
        }


def save_parts(folder: Path, parts: Mapping[str, Any], defaults: Defaults) -> Path:
    """Write all parts of a checkpoint in diffusers' layout and return the folder; it appears whole or not at all.

    Raises ValueError when a part lacks, FileExistsError when the folder exists and is not empty.
    """
    missing = sorted(MODEL_INDEX.keys() - parts.keys())
    if missing:
        raise ValueError(f"a checkpoint needs the parts {', '.join(missing)} too")
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} exists and is not empty; choose a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary, silence():
        made = Path(temporary) / "checkpoint"
        made.mkdir()
        for part in MODEL_INDEX:
            parts[part].save_pretrained(str(made / part))
        let_others_read(made)
        index = {"_class_name": "FluxKontextPipeline", "_diffusers_version": diffusers.__version__}
        index |= {"image_encoder": [None, None], "feature_extractor": [None, None]} | MODEL_INDEX
        _write_json(made / "model_index.json", index)
        _write_json(made / "kontext.json", asdict(defaults))
        made.rename(folder)
    return folder


def let_others_read(folder: Path) -> None:
    """Open the weights below a folder to readers: safetensors leaves them to the owner alone, whatever the umask."""
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(0o644)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _make_transformer(sizes: _Size) -> Any:
    return FluxTransformer2DModel(
        in_channels=TOKEN_CHANNELS,
        joint_attention_dim=sizes.text_width,
        pooled_projection_dim=sizes.text_width,
        guidance_embeds=True,
        **sizes.transformer,
    ).eval()


def _make_scheduler() -> Any:
    return FlowMatchEulerDiscreteScheduler(
        base_image_seq_len=256,
        base_shift=0.5,
        max_image_seq_len=4096,
        max_shift=1.15,
        num_train_timesteps=1000,
        shift=3.0,
        use_dynamic_shifting=True,
    )


def _make_vae(sizes: _Size) -> Any:
    return AutoencoderKL(
        latent_channels=CHANNELS,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        sample_size=round(REFERENCE_AREA_PX**0.5),
        use_quant_conv=False,
        use_post_quant_conv=False,
        **sizes.vae,
    ).eval()


def _make_clip(sizes: _Size, tokenizer: Any) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.text_width,
        intermediate_size=4 * sizes.text_width,
        projection_dim=sizes.text_width,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=4,
        max_position_embeddings=CLIP_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config).eval()


def _make_t5(sizes: _Size, tokenizer: Any) -> Any:
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=sizes.text_width,
        d_kv=sizes.text_width // 4,
        d_ff=2 * sizes.text_width,
        num_layers=sizes.text_layers,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return T5EncoderModel(config).eval()


def _list_words(corpus: Iterable[str]) -> list[str]:
    """Every word once, in lower case and sorted, so that the order of the corpus does not matter."""
    return sorted({word.lower() for words in (VOCABULARY, *corpus) for word in _WORD.findall(words)})


def _make_clip_tokenizer(words: list[str], pieces: int) -> Any:
    """CLIP's layout: every byte, every byte at a word's end, the merges, start and end; so that any text tokenizes."""
    merges = _learn_merges(words, pieces)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{each}</w>" for each in alphabet), *("".join(merge) for merge in merges)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CLIP_LENGTH)


def _learn_merges(words: list[str], count: int) -> list[tuple[str, str]]:
    """Byte-pair encoding's merges. The tokenizers library's trainer breaks ties at random; here equals are sorted."""
    spellings = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    for _ in range(count):
        pairs = Counter(pair for spelling in spellings for pair in pairwise(spelling))
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spellings = [_merge(spelling, best) for spelling in spellings]
    return merges


def _merge(spelling: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in spelling:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def _make_t5_tokenizer(words: list[str]) -> Any:
    """T5's layout: pad, end, unknown, the word boundary; then whole words, and single characters for all the others."""
    starts = [f"▁{form}" for word in words for form in (word, word.capitalize())]
    scores = dict.fromkeys(_PRINTABLE, -10.0) | dict.fromkeys(starts, -8.0) | dict.fromkeys(words, -9.0)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *scores.items()]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512)
