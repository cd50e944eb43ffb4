"""Every named shape of FLUX.1 Kontext [dev], recorded from the real classes on the meta device.

`trace_model` walks the product's own functions with a model that has no weights; `mermaid` draws what it recorded. Read
`walk`, then `rows`. No shape is written down here: each comes out of a hook or of one of our own functions.
"""

from kontext_model.trace.diagrams import DIAGRAMS, mermaid
from kontext_model.trace.report import show
from kontext_model.trace.walk import Part, Shape, Trace, trace_model

__all__ = ["DIAGRAMS", "Part", "Shape", "Trace", "mermaid", "show", "trace_model"]
