"""Walks an edit on the meta device, in the product's own order, and names what was recorded.

Owns the way from text ids to pixels, and the parts' parameters and FLOPs. The functions are those that edit pictures
(`text`, `image`, `latents`, `sampling`): texts and pictures pass their encoders one at a time, the transformer takes
the batch. Refuses weights and values.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from PIL import Image
from torch import Tensor, nn

from kontext_model import image, latents, sampling, text
from kontext_model.canvas import Canvas, choose
from kontext_model.checkpoint_maker import build_parts
from kontext_model.revision import Defaults
from kontext_model.trace.published import SCHEDULER, Models, build_models
from kontext_model.trace.recording import Call, Recording
from kontext_model.trace.rows import WATCHED, Row, Source, list_rows

WEIGHT_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
)
TRUE_CFG = 4.0
"""Any scale above 1: it changes values, never shapes."""


@dataclass(frozen=True)
class Shape:
    """A named shape. `count` tensors have it; `seen_at` is the module or function they came out of or went into."""

    key: str
    name: str
    shape: tuple[int, ...]
    count: int
    dtype: str
    seen_at: str

    @property
    def section(self) -> str:
        return self.key.partition(".")[0]

    @property
    def sizes(self) -> str:
        return f"[{','.join(map(str, self.shape))}]"

    def __str__(self) -> str:
        return self.sizes if self.count == 1 else f"{self.count} × {self.sizes}"


@dataclass(frozen=True)
class Part:
    """A part of the model. `flops` are those of one call, measured; `calls` those of one batch at the default steps.

    `within` names the part that it is a share of.
    """

    name: str
    made_of: str
    parameters: int
    flops: int
    calls: int
    within: str = ""

    @property
    def bytes(self) -> dict[str, int]:
        """The weights' memory by dtype."""
        return {name: self.parameters * dtype.itemsize for name, dtype in WEIGHT_DTYPES.items()}


@dataclass(frozen=True)
class Trace:
    """One walk. `double_blocks` and `single_blocks` count the blocks that had the very shapes of the first."""

    asked: str
    canvas: Canvas
    batch: int
    cfg: bool
    steps: int
    double_blocks: int
    single_blocks: int
    shapes: tuple[Shape, ...]
    parts: tuple[Part, ...]

    def find(self, key: str) -> Shape:
        """The shape of a key such as `step.tokens`; raises KeyError."""
        for each in self.shapes:
            if each.key == key:
                return each
        raise KeyError(key)

    @property
    def is_rounded(self) -> bool:
        return str(self.canvas) != self.asked

    @property
    def whole_parts(self) -> tuple[Part, ...]:
        """The parts that are shares of no other."""
        return tuple(each for each in self.parts if not each.within)


def trace_model(size: str = "1024x1024", batch: int = 1, cfg: bool = False) -> Trace:
    """Walk an edit of `batch` pictures of a size such as `1024x1024`, each side rounded to 16 as the product does.

    Raises ValueError for a size or batch that cannot be, LookupError when an installed class no longer has the shapes'
    places.
    """
    width_px, height_px = _read_size(size)
    canvas = choose(max(1, width_px), max(1, height_px), Defaults.area_px, width_px, height_px)
    if batch < 1:
        raise ValueError(f"batch must be at least 1, not {batch}")
    models = build_models()
    recording = Recording(vars(models), WATCHED)
    with torch.inference_mode(), recording:
        _walk(recording, models, canvas, batch, cfg)
    return Trace(
        f"{width_px}x{height_px}",
        canvas,
        batch,
        cfg,
        Defaults.steps,
        _count_alike(recording, "transformer.transformer_blocks", models.transformer.transformer_blocks),
        _count_alike(recording, "transformer.single_transformer_blocks", models.transformer.single_transformer_blocks),
        tuple(_name(recording, row) for row in list_rows(cfg)),
        tuple(_measure_parts(recording, models, batch, cfg)),
    )


def _walk(recording: Recording, models: Models, canvas: Canvas, batch: int, cfg: bool) -> None:
    """The order of `editor`: encode, sample (one step; the others are alike), decode."""
    run = recording.run
    tokenizers = build_parts("tiny")  # of the real classes; their small vocabularies change no shape
    one = text.TextEmbeds(
        run(text.encode_pooled, tokenizers["tokenizer"], models.text_encoder, ""),
        run(text.encode_sequence, tokenizers["tokenizer_2"], models.text_encoder_2, "", Defaults.text_length),
    )
    grid = run(image.encode, models.vae, Image.new("RGB", (canvas.width_px, canvas.height_px)))
    condition = run(latents.pack, torch.cat([grid] * batch))
    run(latents.position_ids, canvas, latents.CONDITION)
    noise = run(latents.draw_noise, 0, canvas).to(grid.device, grid.dtype)
    tokens = run(latents.pack, torch.cat([noise] * batch))
    run(latents.position_ids, canvas, latents.GENERATED)
    denoised = run(
        sampling.denoise,
        models.transformer,
        SCHEDULER,
        tokens,
        condition,
        text.join([one] * batch),
        canvas,
        1,
        [Defaults.guidance] * batch,
        [TRUE_CFG] * batch if cfg else None,
        text.join([one] * batch) if cfg else None,
    )
    run(image.decode_pixels, models.vae, run(latents.unpack, denoised, canvas)[:1])


def _name(recording: Recording, row: Row) -> Shape:
    found = [each for source in row.sources for each in _resolve(recording, source)]
    shapes = {(tuple(tensor.shape), str(tensor.dtype)) for tensor, _ in found}
    if len(shapes) != 1:
        raise LookupError(f"{row.key} was recorded with several shapes, {sorted(shapes)}: its class has changed")
    shape, dtype = shapes.pop()
    return Shape(row.key, row.name, shape, len(found), dtype.removeprefix("torch."), found[0][1])


def _resolve(recording: Recording, source: Source) -> list[tuple[Tensor, str]]:
    """The source's tensors, each with what it came from or went into."""
    if source.after is None:
        call = recording.find(source.owner, source.function, source.nth)
    else:
        call = recording.find_user(_resolve(recording, source.after)[0][0], source.function)
    tensors = call.inputs if source.is_input else call.outputs
    if source.index and source.index not in tensors:
        raise LookupError(f"{source} is not among {', '.join(tensors)}: its class has changed")
    place = _describe(call, source)
    return [(tensors[index], place) for index in ([source.index] if source.index else tensors)]


def _describe(call: Call, source: Source) -> str:
    """The class with its place in the model, or the function."""
    what = call.maker if source.function or call.maker == source.owner else f"{call.maker} {_shorten(source.owner)}"
    return f"into {what}" if source.is_input else what


def _shorten(owner: str) -> str:
    """A module's path within its block."""
    return re.sub(r"^transformer\.(\w+\.0\.)?", "", owner)


def _count_alike(recording: Recording, path: str, blocks: Sequence[nn.Module]) -> int:
    calls = [recording.find(f"{path}.{number}") for number in range(len(blocks))]
    shapes = [[tuple(each.shape) for each in (*call.inputs.values(), *call.outputs.values())] for call in calls]
    return shapes.count(shapes[0])


def _measure_parts(recording: Recording, models: Models, batch: int, cfg: bool) -> list[Part]:
    """Parameters by counting, FLOPs by torch's counter; the transformer's children as shares of it."""
    runs = 2 if cfg else 1

    def measure(name: str, path: str, module: nn.Module, calls: int, within: str = "") -> Part:
        paths = [f"{path}.{number}" for number in range(len(module))] if isinstance(module, nn.ModuleList) else [path]
        made_of = f"{len(module)} × {type(module[0]).__name__}" if len(paths) > 1 else type(module).__name__
        parameters = sum(each.numel() for each in module.parameters())
        return Part(name, made_of, parameters, sum(recording.find(each).flops for each in paths), calls, within)

    forwards = Defaults.steps * runs
    transformer = models.transformer
    return [
        measure("text_encoder", "text_encoder", models.text_encoder, batch * runs),
        measure("text_encoder_2", "text_encoder_2", models.text_encoder_2, batch * runs),
        measure("vae.encoder", "vae.encoder", models.vae.encoder, batch),
        measure("transformer", "transformer", transformer, forwards),
        *(
            measure(name, f"transformer.{name}", child, forwards, "transformer")
            for name, child in transformer.named_children()
        ),
        measure("vae.decoder", "vae.decoder", models.vae.decoder, batch),
    ]


def _read_size(size: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,6})[x×]([0-9]{1,6})", size.strip().lower(), flags=re.ASCII)
    if match is None:
        raise ValueError(f"--size reads like 1024x1024 (width, height in pixels), not {size!r}")
    return int(match[1]), int(match[2])
