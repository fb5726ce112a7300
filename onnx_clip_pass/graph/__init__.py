"""A model as graphs: who makes a value, who reads it, what it is, and safe edits.

Knows nothing of clipping.
"""

from onnx_clip_pass.graph.edit import Added, Editor, rename_in_attributes
from onnx_clip_pass.graph.flow import Flow, Frame, Value
from onnx_clip_pass.graph.scopes import (
    BY_NAME,
    OUTPUT,
    Index,
    Read,
    Scope,
)
from onnx_clip_pass.graph.spec import TRAINING_DOMAIN
from onnx_clip_pass.graph.subgraphs import (
    GraphOrFunction,
    attribute,
    graphs_and_functions,
    graphs_in,
    outermost,
)
from onnx_clip_pass.graph.types import Shape, TensorType
from onnx_clip_pass.graph.uses import Use, ancestors_in, descendants_in, uses
from onnx_clip_pass.graph.versions import is_of_default_set, take_back_imports, versions_of

__all__ = [
    "BY_NAME",
    "OUTPUT",
    "TRAINING_DOMAIN",
    "Added",
    "Editor",
    "Flow",
    "Frame",
    "GraphOrFunction",
    "Index",
    "Read",
    "Scope",
    "Shape",
    "TensorType",
    "Use",
    "Value",
    "ancestors_in",
    "attribute",
    "descendants_in",
    "graphs_and_functions",
    "graphs_in",
    "is_of_default_set",
    "outermost",
    "rename_in_attributes",
    "take_back_imports",
    "uses",
    "versions_of",
]
