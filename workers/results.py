"""Where a result lies, and that it is written once.

Owns a job's key in its batch's store, the picture that an earlier attempt left there, and the one that an earlier job
made already. Refuses to overwrite.
"""

import hashlib

from PIL import Image

from orchestrator.state.queries import Claimed, Finished
from orchestrator.storage import StorageError, Store, open_object, result_name
from workers.bench import Bench
from workers.finishing import finish, identify

PNG = "image/png"


def find_again(bench: Bench, job: Claimed, result: str, sha256: str) -> str | None:
    """Where a job finds the picture that an earlier one made: by reference, or copied when results go elsewhere now.

    None where it is gone or another one. Raises StorageError where the batch's own store does not answer.
    """
    batch = bench.batch(job.batch_id)
    base = batch.results_uri.rpartition("/")[0]
    store, key = open_object(result, bench.settings)
    try:
        if result.startswith(f"{base}/"):
            return result if store.head(key) is not None else None
        data = store.get(key)
    except StorageError as error:
        if error.transient and result.startswith(f"{base}/"):
            raise
        return None
    if hashlib.sha256(data).hexdigest() != sha256:
        return None
    own = bench.store(batch.results_uri)
    name = _key(job, own)
    if not own.put(name, data, content_type=PNG) and own.get(name) != data:
        return None
    return own.locate(name)


def adopt(bench: Bench, job: Claimed) -> Finished | None:
    """The end of a job whose picture an earlier attempt has stored already."""
    store = bench.store(bench.batch(job.batch_id).results_uri)
    key = _key(job, store)
    if store.head(key) is None:
        return None
    data = store.get(key)
    if identify(data) != job.fingerprint:
        return None
    return Finished(job.id, job.attempt, 0.0, store.locate(key), hashlib.sha256(data).hexdigest())


def store_picture(bench: Bench, job: Claimed, picture: Image.Image, seconds: float) -> Finished:
    """Finish a picture and store it, or adopt the one that stands there already; gives the job's end.

    Raises FileExistsError where another picture stands there, StorageError.
    """
    data = finish(picture, fingerprint=job.fingerprint or "")
    sha256 = hashlib.sha256(data).hexdigest()
    store = bench.store(bench.batch(job.batch_id).results_uri)
    key = _key(job, store)
    metadata = {"fingerprint": job.fingerprint or "", "sha256": sha256}
    if not store.put(key, data, content_type=PNG, metadata=metadata):
        adopted = adopt(bench, job)
        if adopted is None:
            raise FileExistsError(f"{store.locate(key)} holds another picture; results are never overwritten")
        return adopted
    return Finished(job.id, job.attempt, seconds, store.locate(key), sha256)


def _key(job: Claimed, store: Store) -> str:
    return result_name(job.custom_id, job.take, ignore_case=store.ignores_case)
