"""What is measured against what: ``python contestants.py NAME SOURCE TARGET [MEMORY]``.

Each contestant imports what it needs and returns the work, so that the work can be timed without
the imports. The program prints the seconds of the work. MEMORY limits its address space in bytes,
so that a contestant that needs too much fails alone.

The peers know beforehand that the gradients are the values called ``…_grad``, and put
``Mul(x, Min(Div(c, ReduceL2(x)), 1))`` behind each of them. They do not look for gradients, do not
ask who reads them, and leave no way back.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

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


def onnx_load_save() -> Work:
    """Load and save with onnx, and change nothing."""
    import onnx

    return lambda source, target: onnx.save(onnx.load(source), target)


def onnx_insert() -> Work:
    """With onnx and its helper."""
    import onnx

    def work(source: str, target: str) -> None:
        model = onnx.load(source)
        _insert(model)
        _save(model, source, target)

    return work


def onnx_insert_structure() -> Work:
    """The same beside the data, which is left alone."""
    import onnx

    def work(source: str, target: str) -> None:
        model = onnx.load(source, load_external_data=False)
        _insert(model)
        onnx.save(model, target)

    return work


def onnx_ir() -> Work:
    """With onnx_ir."""
    import numpy as np
    import onnx_ir as ir

    def insert(graph: ir.Graph) -> None:
        limit, one = (
            ir.Value(name=name, const_value=ir.tensor(np.float32(1), name=name))
            for name in ("clip/norm", "clip/one")
        )
        graph.register_initializer(limit)
        graph.register_initializer(one)
        for node in list(graph):
            raw = node.outputs[0]
            if raw.name is None or not raw.name.endswith("_grad"):
                continue
            norm = ir.node("ReduceL2", [raw], attributes={"keepdims": 0})
            ratio = ir.node("Div", [limit, norm.outputs[0]])
            scale = ir.node("Min", [ratio.outputs[0], one])
            product = ir.node("Mul", [raw, scale.outputs[0]])
            clipped = product.outputs[0]
            clipped.shape, clipped.type = raw.shape, raw.type
            raw.replace_all_uses_with(clipped, replace_graph_outputs=True)
            norm.replace_input_with(0, raw)
            product.replace_input_with(0, raw)
            raw.name, clipped.name = f"{raw.name}/raw", raw.name
            graph.insert_after(node, [norm, ratio, scale, product])

    def work(source: str, target: str) -> None:
        model = ir.load(source)
        insert(model.graph)
        ir.save(model, target, external_data=_data_name(source, target))

    return work


def graphsurgeon() -> Work:
    """With onnx-graphsurgeon."""
    import numpy as np
    import onnx
    import onnx_graphsurgeon as gs

    def insert(graph: gs.Graph) -> None:
        limit, one = (
            gs.Constant(name, np.array(1, np.float32)) for name in ("clip/norm", "clip/one")
        )
        for node in list(graph.nodes):
            clipped = node.outputs[0]
            if not clipped.name.endswith("_grad"):
                continue
            raw = gs.Variable(f"{clipped.name}/raw", clipped.dtype, clipped.shape)
            node.outputs[0] = raw
            norm, ratio, scale = (
                gs.Variable(f"{clipped.name}/{part}", np.float32, ())
                for part in ("norm", "ratio", "min")
            )
            graph.nodes += [
                gs.Node("ReduceL2", inputs=[raw], outputs=[norm], attrs={"keepdims": 0}),
                gs.Node("Div", inputs=[limit, norm], outputs=[ratio]),
                gs.Node("Min", inputs=[ratio, one], outputs=[scale]),
                gs.Node("Mul", inputs=[raw, scale], outputs=[clipped]),
            ]
        graph.toposort()

    def work(source: str, target: str) -> None:
        graph = gs.import_onnx(onnx.load(source))
        insert(graph)
        _save(gs.export_onnx(graph), source, target)

    return work


def onnxscript() -> Work:
    """With onnxscript's rewriter, whose pattern must say which operator makes the gradient."""
    import onnx
    from onnxscript.rewriter import pattern, rewrite

    def made(op: Any, a: Any, b: Any) -> Any:
        return op.MatMul(a, b, _outputs=["gradient"])

    def clipped(op: Any, a: Any, b: Any, gradient: Any) -> Any:
        raw, one = op.MatMul(a, b), op.Constant(value_float=1.0)
        return op.Mul(raw, op.Min(op.Div(one, op.ReduceL2(raw, keepdims=0)), one))

    def is_gradient(context: Any, gradient: Any, **_: Any) -> bool:
        return str(gradient.name).endswith("_grad")

    rule = pattern.RewriteRule(made, clipped, is_gradient)

    def work(source: str, target: str) -> None:
        _save(rewrite(onnx.load(source), [rule]), source, target)

    return work


CONTESTANTS: dict[str, Callable[[], Work]] = {
    "start": start,
    "onnx-clip": onnx_clip,
    "onnx-load-save": onnx_load_save,
    "onnx-insert": onnx_insert,
    "onnx-insert-structure": onnx_insert_structure,
    "onnx-ir": onnx_ir,
    "graphsurgeon": graphsurgeon,
    "onnxscript": onnxscript,
}


def _data_name(source: str, target: str) -> str | None:
    """Weights that were outside stay outside, under a name of the target's own."""
    return f"{Path(target).name}.data" if (Path(source).parent / DATA).exists() else None


def _save(model: ModelProto, source: str, target: str) -> None:
    import onnx

    data = _data_name(source, target)
    onnx.save(model, target, save_as_external_data=data is not None, location=data)


def _insert(model: ModelProto) -> None:
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
