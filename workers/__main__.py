"""`python -m workers --stages encode,sample,decode --name ID`: one worker process, told the rest by its environment."""

import argparse
import os
import secrets
import socket
import sys

from kontext_model.revision import CheckpointError
from orchestrator.settings import SettingsError, configure_logs, read_settings
from orchestrator.state.transitions import Stage
from orchestrator.storage import StorageError


def main() -> int:
    """Read the arguments and serve; 2 for a call or a checkpoint that can never work."""
    parser = argparse.ArgumentParser(prog="python -m workers", description=__doc__)
    parser.add_argument("--stages", default=",".join(Stage), help="comma-separated: encode, sample, decode")
    # Host name and process id come again when a container starts anew.
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    parser.add_argument("--name", default=name, help="the worker's id in SQL, never used before")
    given = parser.parse_args()
    try:
        stages = [Stage(name.strip()) for name in given.stages.split(",")]
        settings = read_settings()
    except (ValueError, SettingsError) as error:
        parser.error(str(error))
    missing = settings.embedded - {"results_uri"} | ({"checkpoint"} if settings.checkpoint is None else set())
    if missing:
        parser.error(f"set {', '.join(sorted(f'KONTEXT_{name.upper()}' for name in missing))}, or use: kontext worker")
    configure_logs(settings)
    # Idle OpenMP threads sleep instead of spinning: a busy machine would wait for them at every operator.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from workers.app import serve  # torch loads here, after the cheap errors
    from workers.watchdog import leave

    try:
        leave(serve(settings, stages, given.name))
    except CheckpointError as error:
        print(f"kontext worker: {error}", file=sys.stderr)
        return 2
    except StorageError as error:  # S3 does not answer now: who watches over the process starts it again
        print(f"kontext worker: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
