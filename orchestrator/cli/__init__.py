"""`kontext …`: the command line.

`app` holds the words (commands, flags, exit statuses); each command's work is a module of its own, imported when it is
called, so that `kontext --help` answers at once. Refuses to import workers or torch: workers are executed.
"""

from orchestrator.cli.app import app, main

__all__ = ["app", "main"]
