"""Catalogues: rows of work, read from CSV, JSONL, Parquet, a folder of images or an S3 prefix, behind one protocol.

Owns what a file looks like and where in it a row stands. Refuses files without an `image` column; a bad row is a
`Problem` of its own and never stops its neighbours. Every reader streams.
"""

from orchestrator.catalogs.catalogue import KNOWN_COLUMNS, Catalogue, CatalogueError, Problem, Row
from orchestrator.catalogs.opening import open_catalogue

__all__ = ["KNOWN_COLUMNS", "Catalogue", "CatalogueError", "Problem", "Row", "open_catalogue"]
