"""What a run would train on, found out before it trains: every row read, every triple counted.

Owns the checks that need the data and the checkpoint together. Opens no weights and writes nothing.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kontext_model import text
from kontext_model.canvas import Canvas
from kontext_model.checkpoint import open_outline
from kontext_model.training.batches import sort_into_buckets
from kontext_model.training.config import ConfigError, TrainingConfig
from kontext_model.training.origin import find_revision
from kontext_model.training.triples import RowSource, open_source, open_validation

MOST_CUTS = 20
"""Cut prompts that are told one by one."""


@dataclass(frozen=True)
class Cut:
    """A prompt that T5 reads in part, and the words it does not read."""

    prompt: str
    lost: str


@dataclass(frozen=True)
class Survey:
    """Counts of triples: all, those of the validation set, those kept by area and canvas, those drawn anew by area.

    Prompts: all, and those cut.
    """

    triples: int
    validation: int
    buckets: Mapping[int, Mapping[Canvas, int]]
    drawn: Mapping[int, int]
    prompts: int
    cuts: tuple[Cut, ...]
    text_length: int
    trained: int


def survey(config: TrainingConfig, read_images: bool = False) -> Survey:
    """Check and count; with `read_images` every image of the rows is decoded.

    Raises TripleError, CheckpointError, and ConfigError for `lora.targets` that name no layer.
    """
    source, validation = open_source(config.data), open_validation(config)
    areas = config.cached_areas_px
    buckets = {area: {canvas: len(m) for canvas, m in sort_into_buckets(source, area).items()} for area in areas}
    drawn: Counter[int] = Counter()
    for phase in config.phases:
        drawn[phase.area_px] += phase.fresh * phase.steps
    drawn = +drawn
    triples = drawn.total() + (len(source) if areas else 0)
    outline = open_outline(config.checkpoint, find_revision(config))
    trained = _count_trained(config, outline.transformer)
    if read_images:
        for each in (source, validation):
            for index in range(len(each)) if isinstance(each, RowSource) else ():
                each.images(index, each.canvas(index, config.phases[-1].area_px))
    prompts = sorted(source.wordings() | validation.wordings())
    length = outline.defaults.text_length
    lost = [(prompt, text.find_lost_words(outline.tokenizer_2, prompt, length)) for prompt in prompts]
    cuts = tuple(Cut(prompt, words) for prompt, words in lost if words)
    return Survey(triples, len(validation), buckets, drawn, len(prompts), cuts, length, trained)


def describe(found: Survey) -> Iterator[str]:
    """A survey in lines."""
    yield f"{found.triples:,} triples, {found.validation:,} for validation; {found.trained:,} weights to train"
    for area_px, canvases in found.buckets.items():
        counts = ", ".join(f"{canvas}: {count:,}" for canvas, count in sorted(canvases.items(), key=lambda e: -e[1]))
        yield f"at {area_px} px  {counts}"
    for area_px, count in found.drawn.items():
        yield f"at {area_px} px  {count:,} drawn while training goes on"
    yield f"{found.prompts:,} prompts, {len(found.cuts):,} longer than the {found.text_length} tokens that T5 reads"
    for cut in found.cuts[:MOST_CUTS]:
        yield f"  {text.shorten(cut.prompt, 60)!r} loses {text.shorten(cut.lost, 200)!r}"
    if len(found.cuts) > MOST_CUTS:
        yield f"  … and {len(found.cuts) - MOST_CUTS:,} more"


def _count_trained(config: TrainingConfig, transformer: Any) -> int:
    """How many numbers the run trains. Raises ConfigError for a target of the LoRA that fits no layer."""
    layers = {name: module for name, module in transformer.named_modules() if hasattr(module, "in_features")}
    if config.lora is None:
        return sum(value.numel() for value in transformer.parameters())
    chosen = set()
    for number, target in enumerate(config.lora.targets):
        fitting = {name for name in layers if name == target or name.endswith(f".{target}")}
        if not fitting:
            known = sorted({name.split(".", 2)[2] for name in layers if "transformer_blocks." in name})
            raise ConfigError(
                f"lora.targets[{number}] {target!r} is no linear layer of the transformer; its blocks have "
                f"{', '.join(known)}"
            )
        chosen |= fitting
    return sum(config.lora.rank * (layers[name].in_features + layers[name].out_features) for name in chosen)
