"""Secrets taken out of texts that people read: log lines, messages in SQL, manifests.

Owns what counts as a secret: passwords and user names in URLs, signatures and tokens in query strings, AWS key ids,
`password=…` and `Bearer …` wherever they stand. A secret in a URL's path cannot be told from a name and stays. Pure.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "…"
_NAME = (
    r"[\w.%-]{0,64}"
    r"(?:sig|token|secret|passw|pwd|credential|auth|policy|session|jwt|key[-_.]?(?:pair|id)|(?:access|api)[-_.]?key)"
    r"[\w.%-]{0,64}"
)
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # redis://:password@host: what stands before the last @ of the authority.
    (re.compile(r"\b([a-z][a-z0-9+.-]{0,20}://)[^/?#\s\"']*@", re.IGNORECASE), rf"\1{HIDDEN}@"),
    # ?X-Amz-Signature=…, &sig=…, password=… and their like in JSON.
    (re.compile(rf"(\b{_NAME}(?:=|[\"']\s?:\s?)[\"']?)[^&;,\s\"'<>#)}}]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    # A long value of a parameter whose name says nothing.
    (re.compile(r"([?&][^=&\s#]{1,64}=)[\w%+/~.-]{32,}={0,2}"), rf"\1{HIDDEN}"),
    (re.compile(r"\b(Bearer|Basic)\s+[\w+/=.~-]{8,}", re.IGNORECASE), rf"\1 {HIDDEN}"),
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), HIDDEN),
)


def redact(text: str) -> str:
    """The text with every secret we can tell replaced by `…`; a text without one comes back as it is."""
    for pattern, hidden in _PATTERNS:
        text = pattern.sub(hidden, text)
    return text


def redact_cell(text: str) -> str:
    """A catalogue's cell, redacted where it is a URL; paths and S3 URIs hold no secrets, whatever they look like."""
    scheme, colon, rest = text.partition("://")
    if not colon or scheme.lower() == "s3":
        return text
    path, mark, query = rest.partition("?")
    return _PATTERNS[0][0].sub(_PATTERNS[0][1], f"{scheme}://{path}") + redact(mark + query)


def is_signed(uri: str) -> bool:
    """Whether a URL's query names a signature or a token: it is then another URL the next time.

    A long value alone, as of `?v=<digest>`, makes none.
    """
    scheme, colon, rest = uri.partition("://")
    pattern, _ = _PATTERNS[1]
    return bool(colon) and scheme.lower() != "s3" and pattern.search(rest.partition("?")[2]) is not None


def redact_event(_: Any, __: str, event: Mapping[str, Any]) -> Mapping[str, Any]:
    """structlog's processor: every value of a log line, redacted."""
    return {name: _redact_value(value) for name, value in event.items()}


def _redact_value(value: Any) -> Any:
    plain = value is None or isinstance(value, bool | int | float)
    return value if plain else redact(str(value))


class RedactingFormatter(logging.Formatter):
    """What libraries log through the standard library, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))
