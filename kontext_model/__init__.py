"""FLUX.1 Kontext image editing in three stages: encode, sample, decode.

`from kontext_model import Edit, KontextEditor` is the whole library face. Importing the package itself loads no torch,
so that a control plane can use `kontext_model.canvas` and `kontext_model.revision`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kontext_model.editor import Edit, KontextEditor

__all__ = ["Edit", "KontextEditor"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from kontext_model import editor

        return getattr(editor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
