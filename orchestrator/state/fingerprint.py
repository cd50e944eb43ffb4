"""The fingerprint: what makes two jobs the same picture. Pure."""

import hashlib


def fingerprint(image_sha256: str, recipe_id: str, seed: int, revision: str, numerics: str) -> str:
    """64 hexadecimal characters over image, recipe, seed, checkpoint revision and numerics.

    `numerics` names dtype, quantisation, caches and the pipeline's version: all that changes pixels beside the weights.
    """
    return hashlib.sha256("\n".join((image_sha256, recipe_id, str(seed), revision, numerics)).encode()).hexdigest()
