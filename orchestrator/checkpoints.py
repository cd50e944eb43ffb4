"""Which checkpoint the jobs are pinned to: the one that is set, else the one that comes with the package.

Owns the default checkpoint's place. Refuses to load weights: it reads digests and defaults, without torch.
"""

from pathlib import Path

import kontext_model
from kontext_model.revision import CheckpointRef, resolve
from orchestrator.settings import Settings
from orchestrator.storage.weights import SCHEME, pin_weights

PACKAGED = Path(next(iter(kontext_model.__path__))) / "wardrobe" / "checkpoint"


def pin_checkpoint(settings: Settings, *, remember: bool = True) -> CheckpointRef:
    """The checkpoint of these settings, its reference absolute, pinned to what it holds now.

    Digests of large files are remembered in the home, unless told otherwise. Raises CheckpointError; StorageError when
    S3 does not answer.
    """
    ref = str(PACKAGED)
    if settings.checkpoint is not None:
        if settings.checkpoint.startswith(SCHEME):
            return pin_weights(settings.checkpoint, settings)
        folder = Path(settings.checkpoint).expanduser()
        ref = str(folder.absolute()) if folder.is_dir() else settings.checkpoint
    return resolve(ref, cache_file=settings.home.absolute() / "revisions.json" if remember else None)
