"""`python -m kontext_model.wardrobe FOLDER`: write the demo catalogue, drawn people and one real photograph."""

import argparse
import csv
import importlib.util
import shutil
import sys
from pathlib import Path

from kontext_model.wardrobe.catalogue import COLUMNS, write_catalogue

PORTRAIT = "astronaut.png"


def main() -> int:
    """Read the arguments, write the catalogue and print its path."""
    parser = argparse.ArgumentParser(prog="python -m kontext_model.wardrobe", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=15, help="drawn photos (default 15)")
    parser.add_argument("--size", type=int, default=512, help="side in pixels of a square photo (default 512)")
    parser.add_argument("--seed", type=int, default=2026)
    given = parser.parse_args()
    catalogue = write_catalogue(given.folder, given.count, given.size, given.seed)
    add_portrait(catalogue)
    print(catalogue)
    return 0


def add_portrait(catalogue: Path) -> bool:
    """Add the photograph that scikit-image's wheel carries, a portrait by NASA in the public domain.

    False, with nothing added, when that package is not installed.
    """
    package = importlib.util.find_spec("skimage")
    if package is None or not package.submodule_search_locations:
        return False
    source = Path(package.submodule_search_locations[0]) / "data" / PORTRAIT
    if not source.is_file():
        return False
    shutil.copyfile(source, catalogue.parent / "photos" / "portrait.png")
    row = dict.fromkeys(COLUMNS, "") | {
        "image": "photos/portrait.png",
        "custom_id": "portrait",
        "preset": "flat-lay",
        "description": "a photograph: astronaut's suit",
    }
    with catalogue.open("a", newline="", encoding="utf-8") as file:
        csv.DictWriter(file, COLUMNS).writerow(row)
    return True


if __name__ == "__main__":
    sys.exit(main())
