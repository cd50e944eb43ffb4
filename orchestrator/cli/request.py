"""What a call asks for: its flags, read and checked before anything is started or stored.

Owns `--preset`, `--prompt`, `--max-error-rate`, `--deadline`, `--set`, `--out`. Refuses what could only fail later, row
by row.
"""

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kontext_model.lora_file import LoraError
from kontext_model.revision import CheckpointRef
from orchestrator.batches import Request, request_of
from orchestrator.catalogs import Catalogue, CatalogueError, open_catalogue
from orchestrator.cli.failures import CallError
from orchestrator.local_stack.servers import BUCKET
from orchestrator.presets import PRESETS
from orchestrator.recipes import OPTIONS, PER_BATCH, PER_JOB, OptionError, read_option
from orchestrator.settings import Settings
from orchestrator.storage import StorageError, open_store
from orchestrator.storage.loras import pin_lora

EMBEDDED_RESULTS_URI = f"s3://{BUCKET}/results"


@dataclass(frozen=True)
class Call:
    """One catalogue and what to do with it. `asked` holds option values already read."""

    catalogue: str
    asked: Mapping[str, Any]
    out: str | None
    priority: int


def read_call(
    catalogue: str, named: Mapping[str, str | None], texts: Sequence[str], out: str | None, priority: int
) -> Call:
    """Check the flags: options with a flag of their own by name, and the `texts` of `--set`.

    Raises CallError, which names the nearest word for one that is unknown.
    """
    given = [(f"--{name.replace('_', '-')}", name, text) for name, text in named.items() if text is not None]
    given += [(f"--set {text}", *_split(text)) for text in texts]
    asked: dict[str, Any] = {}
    for flag, name, text in given:
        if name in asked:
            raise CallError(f"{flag}: {name} is set twice; keep one")
        asked[name] = _read(flag, name, text)
    if {"prompt", "preset"} <= set(asked):
        raise CallError("--preset and --prompt are both set; keep one of them")
    if not catalogue.strip():
        raise CallError("the catalogue's name is empty")
    return Call(catalogue, asked, out, priority)


def _split(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise CallError(f"--set {text}: expected KEY=VALUE, for example --set steps=8")
    return name.strip(), value


def _read(flag: str, name: str, text: str) -> Any:
    known = {**OPTIONS, "seed": PER_JOB["seed"], **PER_BATCH}
    if name == "priority":
        raise CallError(f"{flag}: use --priority for the whole batch, or give the catalogue a column priority")
    if name not in known:
        raise CallError(f"{flag}: {name!r} is no option{_nearest(name, known)}; options: {', '.join(known)}")
    if name == "preset" and text not in PRESETS:
        raise CallError(f"{flag}: {text!r} is no preset{_nearest(text, PRESETS)}; presets: {', '.join(PRESETS)}")
    try:
        return read_option(name, text)
    except OptionError as error:
        raise CallError(f"{flag}: {error}") from None


def _nearest(word: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def open_asked(call: Call, settings: Settings) -> Catalogue:
    """Open the call's catalogue and see that there is something to do. Raises CatalogueError, CallError."""
    catalogue = open_catalogue(call.catalogue, settings)
    if catalogue.is_empty():
        raise CatalogueError(f"{catalogue.uri} holds no rows: there is nothing to do")
    if not {"prompt", "preset"} & {*call.asked, *catalogue.columns}:
        raise CallError(
            f"{catalogue.uri} says nowhere what to do: pass --preset flat-lay or --prompt TEXT, or give it a column "
            "prompt or preset"
        )
    return catalogue


def lies_in_embedded(uri: str) -> bool:
    """Whether a URI is of the embedded S3 server, which must run for it to be read."""
    return uri == f"s3://{BUCKET}" or uri.startswith(f"s3://{BUCKET}/")


def pin_asked(call: Call, settings: Settings) -> Mapping[str, Any]:
    """What is asked, its LoRA pinned; a relative path counts from the working folder. Raises CallError."""
    if "lora" not in call.asked:
        return call.asked
    try:
        pin = pin_lora(call.asked["lora"], os.getcwd(), settings)
    except LoraError as error:
        raise CallError(f"--set lora={call.asked['lora']}: {error}") from error
    return {**call.asked, "lora": pin.place, "lora_sha256": pin.sha256}


def make_request(call: Call, settings: Settings, checkpoint: CheckpointRef) -> Request:
    """The request that is stored with the batch; its results' location is absolute. Raises CallError."""
    uri = call.out or settings.results_uri or EMBEDDED_RESULTS_URI
    if not lies_in_embedded(uri):  # which need not run now
        try:
            uri = open_store(uri, settings).uri
        except StorageError as error:
            raise CallError(str(error)) from error
    return replace(request_of(settings, checkpoint, pin_asked(call, settings), uri), priority=call.priority)


def check_results(request: Request, settings: Settings) -> None:
    """Raise CallError when no result could be written where the request wants them."""
    try:
        open_store(request.results_uri, settings).check_writable()
    except StorageError as error:
        raise CallError(f"results cannot be written: {error}") from error
