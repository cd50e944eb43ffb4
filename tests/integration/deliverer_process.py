"""A deliverer in a process of its own, for a test to kill. Called as: deliverer_process.py DATABASE_URL."""

import sys
import time

import pytest

from orchestrator.deliverer import Deliverer
from orchestrator.settings import Settings
from orchestrator.state.database import open_database
from tests.outside import lead_outside


def main() -> None:
    """Send what is due until killed."""
    lead_outside(pytest.MonkeyPatch())
    deliverer = Deliverer(open_database(sys.argv[1]), Settings())
    while True:
        deliverer.tick()
        time.sleep(0.05)


if __name__ == "__main__":
    main()
