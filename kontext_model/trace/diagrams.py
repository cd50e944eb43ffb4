"""The three diagrams as mermaid: the whole model, a double-stream block, a single-stream block.

Owns which boxes there are and which arrows run between them. Refuses numbers: an arrow names a key of the trace, whose
recorded shape becomes its label.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from kontext_model.trace.walk import Trace


@dataclass(frozen=True)
class Arrow:
    """From box to box, labelled with the shape of `key`; `words` say which of several tensors it is."""

    start: str
    end: str
    key: str
    words: str = ""


@dataclass(frozen=True)
class Diagram:
    """Boxes by id; those of `frame` stand in one titled frame. `with_cfg` comes on top when the trace has true CFG."""

    title: str
    boxes: Mapping[str, str]
    arrows: tuple[Arrow, ...]
    frame_title: str = ""
    frame: Mapping[str, str] = field(default_factory=dict)
    with_cfg: "Diagram | None" = None


def mermaid(trace: Trace, name: str) -> str:
    """The diagram `whole`, `double` or `single` of a trace as mermaid text. Raises ValueError for another name."""
    if name not in DIAGRAMS:
        raise ValueError(f"diagram must be one of {', '.join(DIAGRAMS)}, not {name!r}")
    diagram = DIAGRAMS[name]
    extra = diagram.with_cfg if trace.cfg else None
    lines = ["flowchart TD", *_draw_boxes(diagram.boxes, trace)]
    frame = {**diagram.frame, **(extra.frame if extra else {})}
    if frame:
        title = _fill(diagram.frame_title, trace)
        lines += [f'    subgraph frame["{title}"]', *(f"    {line}" for line in _draw_boxes(frame, trace)), "    end"]
    dropped = {(each.start, each.end) for each in _REPLACED_BY_CFG} if extra else set()
    arrows = [each for each in diagram.arrows if (each.start, each.end) not in dropped]
    for arrow in (*arrows, *(extra.arrows if extra else ())):
        lines.append(f'    {arrow.start} -->|"{_label(arrow, trace)}"| {arrow.end}')
    return "\n".join(lines) + "\n"


def _draw_boxes(boxes: Mapping[str, str], trace: Trace) -> list[str]:
    return [f'    {box}["{_fill(text, trace)}"]' for box, text in boxes.items()]


def _fill(text: str, trace: Trace) -> str:
    return text.format(double=trace.double_blocks, single=trace.single_blocks, steps=trace.steps)


def _label(arrow: Arrow, trace: Trace) -> str:
    shape = trace.find(arrow.key)
    return f"{arrow.words} {shape.sizes}" if arrow.words else str(shape)


def _arrows(*rows: str) -> tuple[Arrow, ...]:
    """Arrows from rows of `start end key [words]`."""
    return tuple(Arrow(*row.split(maxsplit=3)) for row in rows)


_REPLACED_BY_CFG = _arrows("keep euler step.kept")
_CFG = Diagram(
    title="",
    boxes={},
    frame={"second": "The same transformer<br/>on the negative prompt", "guide": "v_neg + cfg · (v − v_neg)"},
    arrows=_arrows(
        "join second step.negative_tokens",
        "second guide step.negative_kept v_neg",
        "keep guide step.kept v",
        "guide euler step.guided",
    ),
)
_WHOLE = Diagram(
    title="The whole model",
    boxes={
        "prompt": "Prompt",
        "clip": "CLIP text encoder",
        "t5": "T5 encoder",
        "photo": "Condition image",
        "vae_encoder": "VAE encoder",
        "normalise": "Mode of the posterior<br/>(z − shift) · scale",
        "pack_condition": "Pack 2×2",
        "seed": "Noise from the seed",
        "cast": "Cast to the model's dtype",
        "pack_noise": "Pack 2×2",
        "ids_noise": "Position ids (0, y, x)",
        "ids_condition": "Position ids (1, y, x)",
        "ids_text": "Text ids, zeros",
        "rope": "RoPE",
        "unpack": "Unpack",
        "denormalise": "z / scale + shift",
        "vae_decoder": "VAE decoder",
        "picture": "Picture",
    },
    frame_title="One of {steps} steps",
    frame={
        "join": "Join latents and condition",
        "timestep": "Timestep",
        "guidance": "Guidance",
        "temb": "time_text_embed",
        "x_embedder": "x_embedder",
        "context_embedder": "context_embedder",
        "double": "Double-stream block ×{double}",
        "single": "Single-stream block ×{single}",
        "norm_out": "norm_out",
        "proj_out": "proj_out",
        "keep": "Keep the latents' part",
        "euler": "Euler: x + v · Δt",
    },
    arrows=_arrows(
        "prompt clip text.clip_ids",
        "prompt t5 text.t5_ids",
        "clip temb step.pooled",
        "t5 context_embedder step.sequence",
        "photo vae_encoder condition.pixels",
        "vae_encoder normalise condition.moments",
        "normalise pack_condition condition.normalised",
        "pack_condition join condition.tokens",
        "seed cast noise.latents",
        "cast pack_noise noise.cast",
        "pack_noise join noise.tokens",
        "ids_noise rope noise.ids",
        "ids_condition rope condition.ids",
        "ids_text rope step.text_ids",
        "rope double step.rope",
        "rope single step.rope",
        "timestep temb step.timestep",
        "guidance temb step.guidance",
        "temb double step.temb",
        "temb single step.temb",
        "temb norm_out step.temb",
        "join x_embedder step.tokens",
        "x_embedder double step.image",
        "context_embedder double step.text",
        "double single double.image.output image",
        "double single double.text.output text",
        "single norm_out single.image.output image",
        "norm_out proj_out step.normed",
        "proj_out keep step.projected",
        "keep euler step.kept",
        "euler join step.next next step",
        "euler unpack step.next after the last",
        "unpack denormalise decode.latents",
        "denormalise vae_decoder decode.denormalised",
        "vae_decoder picture decode.pixels",
    ),
    with_cfg=_CFG,
)


def _stream_boxes(stream: str, title: str) -> dict[str, str]:
    return {
        stream: f"{title} stream",
        f"{stream}_modulation": f"{title}: SiLU, Linear of temb",
        f"{stream}_norm1": f"{title}: AdaLayerNorm",
        f"{stream}_qkv": f"{title}: Q, K, V projections",
        f"{stream}_heads": f"{title}: split into heads",
        f"{stream}_rms": f"{title}: RMSNorm",
        f"{stream}_to_out": f"{title}: output projection",
        f"{stream}_add1": f"{title}: x + gate · out",
        f"{stream}_norm2": f"{title}: LayerNorm, shift, scale",
        f"{stream}_hidden": f"{title}: Linear, GELU",
        f"{stream}_fed": f"{title}: Linear",
        f"{stream}_add2": f"{title}: x + gate · out",
        f"{stream}_out": f"{title} stream, out",
    }


def _stream_arrows(stream: str) -> tuple[Arrow, ...]:
    key = f"double.{stream}"
    return _arrows(
        f"{stream} {stream}_norm1 {key}.input",
        f"temb {stream}_modulation step.temb",
        f"{stream}_modulation {stream}_norm1 {key}.vectors shift, scale",
        f"{stream}_norm1 {stream}_qkv {key}.normed",
        f"{stream}_qkv {stream}_heads {key}.qkv",
        f"{stream}_heads {stream}_rms {key}.heads Q, K",
        f"{stream}_rms join {key}.qk Q, K",
        f"{stream}_heads join {key}.heads V",
        f"split {stream}_to_out {key}.split",
        f"{stream}_to_out {stream}_add1 {key}.projected",
        f"{stream}_modulation {stream}_add1 {key}.vectors gate",
        f"{stream} {stream}_add1 {key}.input",
        f"{stream}_add1 {stream}_norm2 {key}.residual",
        f"{stream}_modulation {stream}_norm2 {key}.vectors shift, scale",
        f"{stream}_norm2 {stream}_hidden {key}.modulated",
        f"{stream}_hidden {stream}_fed {key}.hidden",
        f"{stream}_fed {stream}_add2 {key}.fed",
        f"{stream}_modulation {stream}_add2 {key}.vectors gate",
        f"{stream}_add1 {stream}_add2 {key}.residual",
        f"{stream}_add2 {stream}_out {key}.output",
    )


_DOUBLE = Diagram(
    title="A double-stream block",
    boxes={
        "temb": "temb",
        "rope_table": "RoPE's cosines, sines",
        **_stream_boxes("text", "Text"),
        **_stream_boxes("image", "Image"),
        "join": "Join: text, then image",
        "rope": "RoPE",
        "transpose": "Heads first",
        "attention": "Attention",
        "merge": "Merge heads",
        "split": "Split back",
    },
    arrows=(
        *_stream_arrows("text"),
        *_stream_arrows("image"),
        *_arrows(
            "rope_table rope step.rope",
            "join rope double.joined Q, K",
            "rope transpose double.rope Q, K",
            "join transpose double.joined V",
            "transpose attention double.attended",
            "attention merge double.attention",
            "merge split double.merged",
        ),
    ),
)
_SINGLE = Diagram(
    title="A single-stream block",
    boxes={
        "temb": "temb",
        "rope_table": "RoPE's cosines, sines",
        "text": "Text stream",
        "image": "Image stream",
        "join": "Join: text, then image",
        "modulation": "SiLU, Linear of temb",
        "norm": "AdaLayerNorm",
        "mlp": "MLP branch: Linear, GELU",
        "qkv": "Q, K, V projections",
        "heads": "Split into heads",
        "rms": "RMSNorm",
        "rope": "RoPE",
        "transpose": "Heads first",
        "attention": "Attention",
        "merge": "Merge heads",
        "branches": "Join both branches",
        "proj_out": "proj_out",
        "add": "x + gate · out",
        "split": "Split back",
        "text_out": "Text stream, out",
        "image_out": "Image stream, out",
    },
    arrows=_arrows(
        "text join single.text.input",
        "image join single.image.input",
        "join norm single.joined",
        "temb modulation step.temb",
        "modulation norm single.vectors shift, scale",
        "norm mlp single.normed",
        "norm qkv single.normed",
        "qkv heads single.qkv",
        "heads rms single.heads Q, K",
        "rms rope single.qk Q, K",
        "rope_table rope step.rope",
        "rope transpose single.rope Q, K",
        "heads transpose single.heads V",
        "transpose attention single.attended",
        "attention merge single.attention",
        "merge branches single.merged",
        "mlp branches single.mlp",
        "branches proj_out single.branches",
        "proj_out add single.projected",
        "modulation add single.vectors gate",
        "join add single.joined",
        "add split single.residual",
        "split text_out single.text.output",
        "split image_out single.image.output",
    ),
)
DIAGRAMS: Mapping[str, Diagram] = MappingProxyType({"whole": _WHOLE, "double": _DOUBLE, "single": _SINGLE})
