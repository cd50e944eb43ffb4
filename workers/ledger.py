"""What is remembered of source images from one night to the next, so that unchanged ones are not downloaded again.

Owns when SQL is asked and told: asked never while nothing is remembered, told about once a second, since a memory that
is lost costs one download. Refuses to say that an image is unchanged: that is its source's to say.
"""

import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from orchestrator.redaction import is_signed
from orchestrator.state import queries
from orchestrator.state.database import single
from orchestrator.state.queries import Source, source_id

TELL_AFTER_S = 1.0
log = structlog.get_logger("ledger")


class Ledger:
    """The memory of sources, shared by all workers of a database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._new: dict[str, Source] = {}
        self._timer: threading.Timer | None = None
        self._worth_asking = lru_cache(256)(self._any_source)

    def recall(self, batch_id: str, uris: Sequence[str]) -> Mapping[str, Source]:
        """What is remembered of images, by their absolute URIs. One question a batch, while there is nothing."""
        if not uris or not self._worth_asking(batch_id):
            return {}
        ids = {uri: source_id(uri) for uri in uris}
        with single(self._engine).connect() as connection:
            found = queries.recall_sources(connection, ids.values())
        return {uri: found[id_] for uri, id_ in ids.items() if id_ in found}

    def learn(self, uri: str, validator: str, image_sha256: str) -> None:
        """Remember an image that was just read. SQL hears of it soon, or when the ledger is closed.

        One at a signed URL is not remembered: nobody would ask by that URL again, and each night would add rows.
        """
        if is_signed(uri):
            return
        source = Source(source_id(uri), validator, image_sha256)
        with self._lock:
            self._new[source.id] = source
            if self._timer is None:
                self._timer = threading.Timer(TELL_AFTER_S, self._tell)
                self._timer.daemon = True
                self._timer.start()

    def close(self) -> None:
        """Tell SQL what it has not heard yet."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
        self._tell()

    def _tell(self) -> None:
        with self._lock:
            new, self._new, self._timer = list(self._new.values()), {}, None
        if not new:
            return
        try:
            with self._engine.begin() as connection:
                queries.learn_sources(connection, new)
        except DBAPIError as error:
            log.warning("sources not remembered", sources=len(new), error=str(error.orig).partition("\n")[0])

    def _any_source(self, batch_id: str) -> bool:
        with single(self._engine).connect() as connection:
            return queries.any_source(connection)
