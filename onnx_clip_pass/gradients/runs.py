"""Runs: what of a model executes once, and which inputs it says itself to be replaced by what."""

from __future__ import annotations

from typing import NamedTuple

from onnx_clip_pass.graph import OUTPUT, Flow, Frame
from onnx_clip_pass.graph.control import subgraph_output_of_input

__all__ = ["Run"]


class Run(NamedTuple):
    """A part executed once: its frames, the last of which returns the outputs, and known pairs."""

    frames: tuple[Frame, ...]
    bound: dict[str, str] | None = None

    @classmethod
    def all_of(cls, flow: Flow) -> list[Run]:
        """Return every run of a model."""
        runs = []
        for root in flow.roots():
            path = root.scope.path
            if root is flow.main:
                runs.append(cls((root,)))
            elif path.endswith(".algorithm"):
                info = flow.index.model.training_info[
                    int(path[len("training_info[") :].split("]")[0])
                ]
                bound = {each.key: each.value for each in info.update_binding}
                runs.append(cls((flow.main, root), bound))
        for frame in flow.frames():
            if frame.caller is None or frame.call == OUTPUT or frame.scope.is_function:
                continue
            call = frame.caller.scope.nodes[frame.call]
            if call.op_type in ("Loop", "Scan"):
                pairs = {
                    name: frame.scope.outputs[out]
                    for at, name in enumerate(frame.scope.inputs)
                    if (out := subgraph_output_of_input(call, at)) is not None
                    and out < len(frame.scope.outputs)
                }
                runs.append(cls((frame,), pairs))
        return runs
