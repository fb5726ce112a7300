"""What is measured against what: ``python contestants.py NAME SOURCE TARGET [MEMORY]``.

Each contestant imports what it needs and returns the work, so that the work can be timed without
the imports. The program prints the seconds of the work. MEMORY limits its address space in bytes,
so that a contestant that needs too much fails alone.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["CONTESTANTS", "DATA"]

DATA = "weights.bin"
"""Where the weights are if they are outside; it lies beside the source."""

Work = Callable[[str, str], object]


def start() -> Work:
    """Nothing but starting and importing onnx-clip."""
    import onnx_clip_pass  # noqa: F401

    return lambda source, target: None


def onnx_clip() -> Work:
    """The rewrite itself; weights outside come along into another folder."""
    from onnx_clip_pass import GradientClipByNorm, clip_gradients_file

    return lambda source, target: clip_gradients_file(
        source, target, GradientClipByNorm(1.0), force=True
    )


def onnx_insert() -> Work:
    """Load everything with onnx, insert the nodes that onnx-clip would, save everything."""
    import onnx

    def work(source: str, target: str) -> None:
        model = onnx.load(source)
        _insert(model)
        data = _data_name(source, target)
        onnx.save(model, target, save_as_external_data=data is not None, location=data)

    return work


def onnx_insert_structure() -> Work:
    """The same beside the data, which is left alone."""
    import onnx

    def work(source: str, target: str) -> None:
        model = onnx.load(source, load_external_data=False)
        _insert(model)
        onnx.save(model, target)

    return work


def onnx_load_save() -> Work:
    """Load and save with onnx."""
    import onnx

    return lambda source, target: onnx.save(onnx.load(source), target)


def onnx_ir() -> Work:
    """Load and save with onnx_ir."""
    import onnx_ir as ir

    return lambda source, target: ir.save(
        ir.load(source), target, external_data=_data_name(source, target)
    )


def graphsurgeon() -> Work:
    """Import and export with onnx-graphsurgeon."""
    import onnx
    import onnx_graphsurgeon as gs

    def work(source: str, target: str) -> None:
        model = gs.export_onnx(gs.import_onnx(onnx.load(source)))
        data = _data_name(source, target)
        onnx.save(model, target, save_as_external_data=data is not None, location=data)

    return work


CONTESTANTS: dict[str, Callable[[], Work]] = {
    "start": start,
    "onnx-clip": onnx_clip,
    "onnx-insert": onnx_insert,
    "onnx-insert-structure": onnx_insert_structure,
    "onnx-load-save": onnx_load_save,
    "onnx-ir": onnx_ir,
    "graphsurgeon": graphsurgeon,
}


def _data_name(source: str, target: str) -> str | None:
    """Weights that were outside stay outside, under a name of the target's own."""
    return f"{Path(target).name}.data" if (Path(source).parent / DATA).exists() else None


def _insert(model: ModelProto) -> None:
    """Put ``Mul(x, Min(Div(c, ReduceL2(x)), 1))`` behind each ``…_grad``, names known before."""
    from onnx import GraphProto, TensorProto, helper

    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        name = node.output[0]
        if name.endswith("_grad"):
            raw, norm, ratio, scale = (f"{name}/{part}" for part in ("raw", "norm", "ratio", "min"))
            node.output[0] = raw
            nodes += [
                helper.make_node("ReduceL2", [raw], [norm], keepdims=0),
                helper.make_node("Div", ["clip/norm", norm], [ratio]),
                helper.make_node("Min", [ratio, "clip/one"], [scale]),
                helper.make_node("Mul", [raw, scale], [name]),
            ]
    graph = GraphProto(node=nodes)  # copies, for the originals go with the list they are in
    del model.graph.node[:]
    model.graph.node.extend(graph.node)
    for constant in ("clip/norm", "clip/one"):
        model.graph.initializer.append(helper.make_tensor(constant, TensorProto.FLOAT, [], [1.0]))


def main(name: str, source: str, target: str, memory: str = "") -> None:
    """Do one piece of work and print its seconds."""
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    work = CONTESTANTS[name]()
    began = perf_counter()
    work(source, target)
    print(perf_counter() - began)


if __name__ == "__main__":
    main(*sys.argv[1:])
