"""The ledger, statement by statement: which pictures exist by fingerprint, which images are known by their sources."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache

from sqlalchemy import Connection, TextClause, text


@dataclass(frozen=True)
class Source:
    """An image that was read: the digest of its absolute URI, the validator it came with, and its bytes' SHA-256."""

    id: str
    validator: str
    image_sha256: str


def source_id(uri: str) -> str:
    """64 hexadecimal characters for an absolute URI, so that no secret in it is stored once more."""
    return hashlib.sha256(uri.encode("utf-8", "surrogatepass")).hexdigest()


def find_reusable(connection: Connection, fingerprints: Iterable[str]) -> Mapping[str, tuple[str, str]]:
    """Pictures that were made for these fingerprints: fingerprint → (result URI, sha256) of the latest job.

    The latest, since a picture that was deleted has been made again by it.
    """
    given = {"given": json.dumps(list(fingerprints))}
    rows = connection.execute(_find_reusable(connection.dialect.name), given)
    return {row.fingerprint: (row.result, row.sha256) for row in rows}


def recall_sources(connection: Connection, ids: Iterable[str]) -> Mapping[str, Source]:
    """What is remembered of sources, by their ids."""
    rows = connection.execute(_recall_sources(connection.dialect.name), {"given": json.dumps(list(ids))})
    return {row.id: Source(*row) for row in rows}


def any_source(connection: Connection) -> bool:
    """Whether anything is remembered at all."""
    return connection.execute(text("SELECT 1 FROM sources LIMIT 1")).first() is not None


def learn_sources(connection: Connection, sources: Sequence[Source]) -> None:
    """Remember images, each id once; what was known of a source is replaced."""
    # Sorted, so that two workers lock shared rows in one order.
    rows = json.dumps([asdict(source) for source in sorted(sources, key=lambda source: source.id)])
    connection.execute(_learn_sources(connection.dialect.name), {"given": rows})


_LISTED: Mapping[str, str] = {
    "postgresql": "jsonb_array_elements_text(CAST(:given AS jsonb)) AS given(value)",
    "sqlite": "json_each(:given) AS given",
}
_ROWS: Mapping[str, str] = {
    "postgresql": "jsonb_to_recordset(CAST(:given AS jsonb)) AS given(id text, validator text, image_sha256 text)",
    "sqlite": "(SELECT value ->> 'id' AS id, value ->> 'validator' AS validator,"
    " value ->> 'image_sha256' AS image_sha256 FROM json_each(:given)) AS given",
}


@cache
def _find_reusable(dialect: str) -> TextClause:
    # Night after night the same fingerprint succeeds again: only its latest job is looked up. PostgreSQL is told how:
    # it would read all jobs, for a join or, but for the `+ 0`, down the primary key.
    latest = {
        "postgresql": """JOIN LATERAL (SELECT * FROM jobs AS made WHERE made.fingerprint = given.value
            AND made.state = 'succeeded' ORDER BY made.id + 0 DESC LIMIT 1) AS jobs ON true""",
        "sqlite": """JOIN jobs ON jobs.id = (SELECT max(made.id) FROM jobs AS made
            WHERE made.fingerprint = given.value AND made.state = 'succeeded')""",
    }
    return text(f"SELECT jobs.fingerprint, jobs.result, jobs.sha256 FROM {_LISTED[dialect]} {latest[dialect]}")


@cache
def _recall_sources(dialect: str) -> TextClause:
    return text(
        "SELECT sources.id, sources.validator, sources.image_sha256"
        f" FROM {_LISTED[dialect]} JOIN sources ON sources.id = given.value"
    )


@cache
def _learn_sources(dialect: str) -> TextClause:
    return text(
        f"""
        INSERT INTO sources (id, validator, image_sha256)
        SELECT given.id, given.validator, given.image_sha256 FROM {_ROWS[dialect]} WHERE true
        ON CONFLICT (id) DO UPDATE SET validator = excluded.validator, image_sha256 = excluded.image_sha256"""
    )
