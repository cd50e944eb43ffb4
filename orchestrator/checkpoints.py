"""Which checkpoint the jobs are pinned to: the one that is set, else the small one of the demo.

Owns the default checkpoint's place and its making. Refuses to load weights: what must be made is made by another
process, since this one has no torch.
"""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import kontext_model
from kontext_model.revision import CheckpointError, CheckpointRef, resolve
from orchestrator.settings import Settings

MAKE_TIMEOUT_S = 600
_MAKE = (
    "import sys; from kontext_model.checkpoint_maker import make_checkpoint; make_checkpoint(sys.argv[1], size='small')"
)


def pin_checkpoint(settings: Settings, say: Callable[[str], None] = lambda text: None) -> CheckpointRef:
    """The checkpoint of these settings, its reference absolute, pinned to what it holds now.

    Without a setting: the weights that came with the package, else a small checkpoint with random weights, made once
    in the home. `say` is told when that takes a while. Raises CheckpointError.
    """
    if settings.checkpoint is not None:
        folder = Path(settings.checkpoint).expanduser()
        ref = str(folder.absolute()) if folder.is_dir() else settings.checkpoint
    else:
        folder = default_folder(settings)
        if not folder.is_dir():
            say("making the small demo checkpoint (random weights, once for this home) …")
            _make(folder)
        ref = str(folder)
    return resolve(ref, cache_file=settings.home.absolute() / "revisions.json")


def default_folder(settings: Settings) -> Path:
    """Where the checkpoint is when none is set; it may not be made yet."""
    packaged = Path(next(iter(kontext_model.__path__))) / "wardrobe" / "checkpoint"
    return packaged if packaged.is_dir() else settings.home.absolute() / "checkpoints" / "small"


def _make(folder: Path) -> None:
    with _locked(folder.parent):
        if folder.is_dir():
            return  # another process made it meanwhile
        try:
            subprocess.run(
                [sys.executable, "-P", "-c", _MAKE, str(folder)],
                check=True,
                capture_output=True,
                text=True,
                timeout=MAKE_TIMEOUT_S,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            said = error.stderr if isinstance(error.stderr, str) else ""
            reason = next(iter(reversed(said.strip().splitlines())), str(error))
            raise CheckpointError(
                f"the small demo checkpoint could not be made in {folder}: {reason}; install the extra `worker` "
                "(pip install 'kontext-batch[worker]'), or set KONTEXT_CHECKPOINT"
            ) from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written ({error.strerror}): set KONTEXT_HOME to a folder you may write"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
