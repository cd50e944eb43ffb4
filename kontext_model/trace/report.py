"""A trace on the terminal: as a table, as JSON, as mermaid in Markdown.

Owns the words around the numbers. The keys of the JSON are stable.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kontext_model.canvas import MULTIPLE_PX
from kontext_model.trace.diagrams import DIAGRAMS, mermaid
from kontext_model.trace.walk import WEIGHT_DTYPES, Part, Trace, trace_model

MODEL = "FLUX.1-Kontext-dev"
SECTIONS: Mapping[str, str] = MappingProxyType(
    {
        "text": "Text, one prompt at a time",
        "condition": "Condition image, one at a time until packed",
        "noise": "Noise, one picture at a time until cast",
        "step": "Step",
        "double": "Double-stream block ×{double}",
        "single": "Single-stream block ×{single}",
        "decode": "Decode, one picture at a time",
    }
)
WIDTH = 148
"""Columns where the output is no terminal."""


def show(size: str, batch: int, cfg: bool, style: str) -> None:
    """Trace and print on stdout, as `table`, `json` or `mermaid`; a rounded size is said on stderr."""
    trace = trace_model(size, batch, cfg)
    if trace.is_rounded:
        print(f"{trace.asked} is rounded to {trace.canvas}: sides are multiples of {MULTIPLE_PX} px", file=sys.stderr)
    STYLES[style](trace)


def tabulate(trace: Trace) -> dict[str, Any]:
    """What `--format json` prints."""
    return {
        "model": MODEL,
        "asked": trace.asked,
        "size": str(trace.canvas),
        "rounded": trace.is_rounded,
        "width_px": trace.canvas.width_px,
        "height_px": trace.canvas.height_px,
        "batch": trace.batch,
        "cfg": trace.cfg,
        "steps": trace.steps,
        "blocks": {"double": trace.double_blocks, "single": trace.single_blocks},
        "shapes": [
            {
                "key": each.key,
                "section": each.section,
                "name": each.name,
                "shape": list(each.shape),
                "count": each.count,
                "dtype": each.dtype,
                "seen_at": each.seen_at,
            }
            for each in trace.shapes
        ],
        "parts": [
            {"name": each.name, "class": each.made_of, "within": each.within or None, **_sum([each])}
            | {"flops_per_call": each.flops, "calls": each.calls}
            for each in trace.parts
        ],
        "total": _sum(trace.whole_parts),
    }


def _sum(parts: Sequence[Part]) -> dict[str, Any]:
    return {
        "parameters": sum(each.parameters for each in parts),
        "flops": sum(each.flops * each.calls for each in parts),
        "bytes": {name: sum(each.bytes[name] for each in parts) for name in WEIGHT_DTYPES},
    }


def _print_json(trace: Trace) -> None:
    print(json.dumps(tabulate(trace), ensure_ascii=False, indent=2))


def _print_mermaid(trace: Trace) -> None:
    print("\n".join(f"## {DIAGRAMS[name].title}\n\n```mermaid\n{mermaid(trace, name)}```\n" for name in DIAGRAMS))


def _print_tables(trace: Trace) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    guided = ", true CFG" if trace.cfg else ""
    console.print(Text(f"{MODEL} at {trace.canvas}, batch {trace.batch}{guided}, on the meta device", "bold"))
    console.print(_draw_shapes(trace))
    console.print(_draw_parts(trace))
    console.print(
        f"FLOPs: matrix products, convolutions and attention, 2 for a multiply-add; element-wise work is left out.\n"
        f"All calls: {trace.steps} steps of the batch. Weights in GB, 10⁹ bytes.",
        style="dim",
    )


def _draw_shapes(trace: Trace) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("name", "shape", "dtype", "seen at"):
        table.add_column(header, no_wrap=header != "seen at")
    for section, shapes in groupby(trace.shapes, key=lambda each: each.section):
        title = SECTIONS[section].format(double=trace.double_blocks, single=trace.single_blocks)
        table.add_section()
        table.add_row(Text(title, "bold cyan"))
        for each in shapes:
            table.add_row(
                Text(f"  {each.name}"), Text(str(each), "green"), Text(each.dtype, "dim"), Text(each.seen_at, "dim")
            )
    return table


def _draw_parts(trace: Trace) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("part", no_wrap=True)
    table.add_column("class", overflow="fold")
    for header in ("parameters", "TFLOP a call", "calls", "TFLOP in all", *(f"{name} GB" for name in WEIGHT_DTYPES)):
        table.add_column(header, justify="right", no_wrap=True)
    for each in trace.parts:
        style = "dim" if each.within else ""
        name = Text(f"{'  ' if each.within else ''}{each.name}")
        table.add_row(
            name, each.made_of, f"{each.parameters:,}", _tera(each.flops), str(each.calls), *_cells([each]), style=style
        )
    table.add_section()
    parts = trace.whole_parts
    table.add_row("all", "", f"{sum(each.parameters for each in parts):,}", "", "", *_cells(parts), style="bold")
    return table


def _cells(parts: Sequence[Part]) -> list[str]:
    figures = _sum(parts)
    return [_tera(figures["flops"]), *(f"{each / 1e9:,.2f}" for each in figures["bytes"].values())]


def _tera(flops: int) -> str:
    return f"{flops / 1e12:,.3f}"


STYLES: Mapping[str, Callable[[Trace], None]] = MappingProxyType(
    {"table": _print_tables, "json": _print_json, "mermaid": _print_mermaid}
)
