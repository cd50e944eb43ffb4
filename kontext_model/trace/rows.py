"""Which recorded tensors have a name: the table of the trace, in the order of the way.

Owns names and where each is found. Refuses numbers: a shape comes from the recording alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

DOUBLE = "transformer.transformer_blocks.0"
SINGLE = "transformer.single_transformer_blocks.0"
WATCHED = frozenset({DOUBLE, f"{DOUBLE}.attn", f"{DOUBLE}.norm1", f"{DOUBLE}.norm1_context"}) | frozenset(
    {SINGLE, f"{SINGLE}.attn", f"{SINGLE}.norm", "transformer.norm_out"}
)
"""The modules whose shapes are not all inputs and outputs of modules inside them."""


@dataclass(frozen=True)
class Source:
    """A tensor of the recording: of the nth call of an owner, or of a torch function inside it.

    `index` is its path among that call's tensors; empty: all of them. With `after`, the call is instead the first of
    `function` that takes that source's tensor.
    """

    owner: str
    function: str = ""
    index: str = ""
    nth: int = 0
    is_input: bool = False
    after: "Source | None" = None


@dataclass(frozen=True)
class Row:
    """A named shape, shared by the tensors of all its sources. The key's first word is its section."""

    key: str
    name: str
    sources: tuple[Source, ...]


def list_rows(with_cfg: bool) -> tuple[Row, ...]:
    """Every row, from text ids to pixels; with true CFG also the second run's and the combination's."""
    cfg = _CFG if with_cfg else ()
    return (*_TEXT, *_CONDITION, *_NOISE, *_INTO_STEP, *_list_double(), *_SINGLE, *_OUT_OF_STEP, *cfg, _EULER, *_DECODE)


def _row(key: str, name: str, *sources: Source) -> Row:
    return Row(key, name, sources)


def _out(owner: str, index: str = "", nth: int = 0) -> Source:
    return Source(owner, index=index, nth=nth)


def _into(owner: str, index: str = "0", nth: int = 0) -> Source:
    return Source(owner, index=index, nth=nth, is_input=True)


def _torch(owner: str, function: str, nth: int = 0) -> Source:
    return Source(owner, function, nth=nth)


def _into_torch(owner: str, function: str, index: str, nth: int = 0) -> Source:
    return Source(owner, function, index, nth, is_input=True)


def _after(source: Source, function: str) -> Source:
    return Source("", function, after=source)


_TEXT = (
    _row("text.clip_ids", "ids for CLIP", _into("text_encoder")),
    _row("text.pooled", "pooled CLIP vector", _out("text.encode_pooled")),
    _row("text.t5_ids", "ids for T5", _into("text_encoder_2")),
    _row("text.sequence", "T5 sequence", _out("text.encode_sequence")),
)
_MEANS = Source("", "chunk", index="0", after=_out("vae.encoder"))
_MODE = Source("", "sub", index="0", is_input=True, after=_MEANS)
_CONDITION = (
    _row("condition.pixels", "condition image", _into("vae.encoder")),
    _row("condition.moments", "posterior: means and log variances", _out("vae.encoder")),
    _row("condition.latents", "mode of the posterior", _MODE),
    _row("condition.normalised", "normalised: (z − shift) · scale", _out("image.encode")),
    _row("condition.tokens", "packed", _out("latents.pack")),
    _row("condition.ids", "position ids (1, y, x)", _out("latents.position_ids")),
)
_NOISE = (
    _row("noise.latents", "noise, drawn unpacked", _out("latents.draw_noise")),
    _row("noise.cast", "cast to the model's dtype", _into("latents.pack", nth=1)),
    _row("noise.tokens", "packed", _out("latents.pack", nth=1)),
    _row("noise.ids", "position ids (0, y, x)", _out("latents.position_ids", nth=1)),
)
_INTO_STEP = (
    _row("step.tokens", "latents and condition joined", _into("transformer", "hidden_states")),
    _row("step.ids", "their position ids", _into("transformer", "img_ids")),
    _row("step.text_ids", "text's position ids, zeros", _into("transformer", "txt_ids")),
    _row("step.sequence", "T5 sequence", _into("transformer", "encoder_hidden_states")),
    _row("step.pooled", "pooled CLIP vector", _into("transformer", "pooled_projections")),
    _row("step.timestep", "timestep", _into("transformer", "timestep")),
    _row("step.guidance", "guidance", _into("transformer", "guidance")),
    _row("step.image", "image stream", _out("transformer.x_embedder")),
    _row("step.text", "text stream", _out("transformer.context_embedder")),
    _row("step.temb", "temb: timestep + guidance + pooled", _out("transformer.time_text_embed")),
    _row("step.rope", "RoPE's cosines and sines", _out("transformer.pos_embed")),
)


@dataclass(frozen=True)
class _Stream:
    """Where a double-stream block keeps one stream."""

    name: str
    hidden: str
    norm: str
    projections: tuple[str, str, str]
    head_norms: tuple[str, str]
    first_heads: int
    to_out: str
    output: str


_IMAGE = _Stream(
    "image", "hidden_states", "norm1", ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"), 0, "to_out.0", "1"
)  # fmt: skip
_TEXT_STREAM = _Stream(
    "text", "encoder_hidden_states", "norm1_context", ("add_q_proj", "add_k_proj", "add_v_proj"),
    ("norm_added_q", "norm_added_k"), 3, "to_add_out", "0",
)  # fmt: skip


def _list_double() -> Iterator[Row]:
    for stream in (_IMAGE, _TEXT_STREAM):
        yield from _list_stream_before(stream)
    yield from _JOINT
    for stream in (_IMAGE, _TEXT_STREAM):
        yield from _list_stream_after(stream)


def _list_stream_before(stream: _Stream) -> Iterator[Row]:
    key, name, norm, attention = f"double.{stream.name}", stream.name, f"{DOUBLE}.{stream.norm}", f"{DOUBLE}.attn"
    heads = range(stream.first_heads, stream.first_heads + 3)
    yield _row(f"{key}.input", f"{name} stream", _into(DOUBLE, stream.hidden))
    yield _row(f"{key}.modulation", f"{name}: modulation from temb", _out(f"{norm}.linear"))
    yield _row(f"{key}.vectors", f"{name}: shift, scale, gate; twice", _torch(norm, "chunk"))
    yield _row(f"{key}.normed", f"{name}: AdaLayerNorm", _out(norm, "0"))
    yield _row(f"{key}.qkv", f"{name}: Q, K, V", *(_out(f"{attention}.{each}") for each in stream.projections))
    yield _row(f"{key}.heads", f"{name}: split into heads", *(_torch(attention, "unflatten", nth) for nth in heads))
    yield _row(f"{key}.qk", f"{name}: RMSNorm on Q, K", *(_out(f"{attention}.{each}") for each in stream.head_norms))


def _list_stream_after(stream: _Stream) -> Iterator[Row]:
    key, name, suffix = f"double.{stream.name}", stream.name, stream.norm.removeprefix("norm1")
    yield _row(f"{key}.projected", f"{name}: output projection", _out(f"{DOUBLE}.attn.{stream.to_out}"))
    yield _row(f"{key}.residual", f"{name}: residual x + gate · out", _into(f"{DOUBLE}.norm2{suffix}"))
    yield _row(f"{key}.modulated", f"{name}: LayerNorm, shift, scale", _into(f"{DOUBLE}.ff{suffix}"))
    yield _row(f"{key}.hidden", f"{name}: feed-forward, GELU", _out(f"{DOUBLE}.ff{suffix}.net.0"))
    yield _row(f"{key}.fed", f"{name}: feed-forward out", _out(f"{DOUBLE}.ff{suffix}"))
    yield _row(f"{key}.output", f"{name}: residual, the block's output", _out(DOUBLE, stream.output))


_ATTENTION_IN = ("query", "key", "value")
_SDPA = "scaled_dot_product_attention"
_JOINT = (
    _row("double.first", "joined first: text", _into_torch(f"{DOUBLE}.attn", "cat", "0.0")),
    _row("double.second", "joined second: image", _into_torch(f"{DOUBLE}.attn", "cat", "0.1")),
    _row("double.joined", "Q, K, V joined", *(_torch(f"{DOUBLE}.attn", "cat", nth) for nth in range(3))),
    _row("double.rope", "RoPE on Q, K", *(_into_torch(f"{DOUBLE}.attn", "permute", "0", nth) for nth in range(2))),
    _row("double.attended", "attention over", *(_into_torch(f"{DOUBLE}.attn", _SDPA, each) for each in _ATTENTION_IN)),
    _row("double.attention", "attention", _torch(f"{DOUBLE}.attn", _SDPA)),
    _row("double.merged", "heads merged", _into_torch(f"{DOUBLE}.attn", "split_with_sizes", "0")),
    _row("double.text.split", "split back: text", replace(_torch(f"{DOUBLE}.attn", "split_with_sizes"), index="0")),
    _row("double.image.split", "split back: image", replace(_torch(f"{DOUBLE}.attn", "split_with_sizes"), index="1")),
)
_SINGLE = (
    _row("single.text.input", "text stream", _into(SINGLE, "encoder_hidden_states")),
    _row("single.image.input", "image stream", _into(SINGLE, "hidden_states")),
    _row("single.joined", "text and image joined", _torch(SINGLE, "cat")),
    _row("single.modulation", "modulation from temb", _out(f"{SINGLE}.norm.linear")),
    _row("single.vectors", "shift, scale, gate", _torch(f"{SINGLE}.norm", "chunk")),
    _row("single.normed", "AdaLayerNorm", _out(f"{SINGLE}.norm", "0")),
    _row("single.mlp", "MLP branch: Linear, GELU", _out(f"{SINGLE}.act_mlp")),
    _row("single.qkv", "Q, K, V", *(_out(f"{SINGLE}.attn.{each}") for each in _IMAGE.projections)),
    _row("single.heads", "split into heads", *(_torch(f"{SINGLE}.attn", "unflatten", nth) for nth in range(3))),
    _row("single.qk", "RMSNorm on Q, K", *(_out(f"{SINGLE}.attn.{each}") for each in _IMAGE.head_norms)),
    _row("single.rope", "RoPE on Q, K", *(_into_torch(f"{SINGLE}.attn", "permute", "0", nth) for nth in range(2))),
    _row("single.attended", "attention over", *(_into_torch(f"{SINGLE}.attn", _SDPA, each) for each in _ATTENTION_IN)),
    _row("single.attention", "attention", _torch(f"{SINGLE}.attn", _SDPA)),
    _row("single.merged", "attention branch, heads merged", _out(f"{SINGLE}.attn")),
    _row("single.branches", "both branches joined", _torch(SINGLE, "cat", 1)),
    _row("single.projected", "output projection", _out(f"{SINGLE}.proj_out")),
    _row("single.residual", "residual x + gate · out", _torch(SINGLE, "add")),
    _row("single.text.output", "the block's output: text", _out(SINGLE, "0")),
    _row("single.image.output", "the block's output: image", _out(SINGLE, "1")),
)
_KEPT = _after(_out("transformer"), "__getitem__")
_OUT_OF_STEP = (
    _row("step.vectors", "norm_out: scale, shift", _torch("transformer.norm_out", "chunk")),
    _row("step.normed", "norm_out, image stream", _out("transformer.norm_out")),
    _row("step.projected", "proj_out", _out("transformer.proj_out")),
    _row("step.kept", "kept: the latents' part, v", _KEPT),
)
_EULER = _row("step.next", "Euler: x + v · Δt", _out("sampling.denoise"))
_KEPT_NEGATIVE = _after(_out("transformer", nth=1), "__getitem__")
_DIFFERENCE = _after(_after(_KEPT, "cat"), "sub")
_CFG = (
    _row("step.negative_tokens", "second run, negative prompt", _into("transformer", "hidden_states", nth=1)),
    _row("step.negative_kept", "kept: v_neg", _KEPT_NEGATIVE),
    _row("step.guided", "v_neg + cfg · (v − v_neg)", _after(_after(_after(_DIFFERENCE, "mul"), "to"), "add")),
)
_DECODE = (
    _row("decode.latents", "unpacked", _out("latents.unpack")),
    _row("decode.denormalised", "z / scale + shift", _into("vae.decoder")),
    _row("decode.pixels", "decoded image", _out("image.decode_pixels")),
)
