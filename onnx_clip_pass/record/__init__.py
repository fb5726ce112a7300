"""The note that a rewrite leaves in the model's metadata, and the way back.

The note is JSON under the key `onnx_clip_pass` of `ModelProto.metadata_props`. It says what was
clipped, how and by which version, and names every node, initializer and declared value that was
added and every name that was changed. All these names are new to the model, so that undoing is
removing the ones and renaming the others, wherever in the model they are. A digest over what
was added, and over the note itself, tells whether another tool has changed either since.

Anyone can write a note and its digest, so nothing in it is trusted: its form is checked as a whole
(`Record` is the description of it), and undoing removes only what holds together as a rewrite
leaves it (`_forged`).
"""

from onnx_clip_pass.record.entries import ClipEntry, Measure, Record, Uncovered
from onnx_clip_pass.record.note import (
    KEY,
    OURS,
    is_clipped,
    note_states,
    read_record,
    states_of,
    write_record,
)
from onnx_clip_pass.record.undoing import strip, strip_if_clipped, undo

__all__ = [
    "KEY",
    "OURS",
    "ClipEntry",
    "Measure",
    "Record",
    "Uncovered",
    "is_clipped",
    "note_states",
    "read_record",
    "states_of",
    "strip",
    "strip_if_clipped",
    "undo",
    "write_record",
]
