"""What a caller may do: three scopes, each including those before it. Pure."""

from enum import StrEnum


class Scope(StrEnum):
    """What a caller may do; each includes those before it."""

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"

    def covers(self, wanted: "Scope") -> bool:
        """Whether a caller with this scope may do what needs `wanted`."""
        order = list(Scope)
        return order.index(self) >= order.index(wanted)
