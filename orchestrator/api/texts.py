"""Texts that SQL is asked with as callers give them: what no database stores is refused before one is asked.

Owns that one check. A text that comes in a JSON body, a form or an address may hold NUL characters and halves of
surrogate pairs; PostgreSQL takes neither, SQLite not the second.
"""

from typing import Annotated

from pydantic import AfterValidator, Field

from orchestrator.state.database import storable


def check_storable(text: str) -> str:
    """The text as it is. Raises ValueError for what no database stores."""
    if storable(text) != text:
        raise ValueError("expected a text in UTF-8 without NUL characters, of at most 2,000 characters")
    return text


Storable = Annotated[str, AfterValidator(check_storable), Field(json_schema_extra={"pattern": r"^[^\x00]*$"})]
"""The type of a parameter, a field of a form, or a member of a body."""
