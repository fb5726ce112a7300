"""Files that are no ONNX model: which format they are in, and the line that converts them."""

from __future__ import annotations

import json
import re
from pathlib import Path

__all__ = ["explained"]

_FIELD = rb"(ir_?version|opset_?import|producer_?\w+|domain|graph|\w*_?props|\w+_?info|functions)"
_FORMATS = (
    ("textproto", re.compile(rb"(\s|#[^\n]*\n)*" + _FIELD + rb"\s*[:{]", re.IGNORECASE)),
    ("json", re.compile(rb"\s*\{\s*\"" + _FIELD + rb"\"\s*:", re.IGNORECASE)),
    ("onnxtxt", re.compile(rb"\s*<\s*" + _FIELD + rb"\s*:")),
)
"""The forms of models as text by the names that `onnx.load` has for them, and how they begin."""


def explained(path: Path, begin: bytes) -> str:
    """Return what a file is that is no ONNX model, and what to do; "" if nobody knows.

    Args:
        path: the file.
        begin: the first few hundred of its bytes.
    """
    name = repr(str(path))
    if begin[4:8] == b"ORTM":
        return (
            f"{name} is a model in ORT format, from which there is no way back: give the .onnx "
            f"file that it was made from"
        )
    for form, pattern in _FORMATS:
        if pattern.match(begin) and b"\0" not in begin:
            binary = path.with_name(f"{path.stem}{'.binary' * (path.suffix == '.onnx')}.onnx")
            import shlex

            given, form_, made = map(json.dumps, (str(path), form, str(binary)))
            code = f"import onnx; onnx.save(onnx.load({given}, format={form_}), {made})"
            return (
                f"{name} is a model as text ({form}), and weights are copied as they lie in a "
                f"binary file; convert it: python -c {shlex.quote(code)}"
            )
    return ""
