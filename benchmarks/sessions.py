"""What does clipping add to a session's start, and would fewer nodes pay?

Thousands of tiny gradients, where nodes cost more than numbers: the clip as `clip_gradients` emits
it, four nodes a gradient, beside a form with two, which gathers all norms in one vector, divides
once, and takes the scales apart again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import onnx
from harness import Sheet, Values, by_turns, scaled
from onnx import TensorProto, helper

from onnx_clip_pass import GradientClipByNorm, clip_gradients

SHAPE = (16,)
CLIP_NORM = 1.0


def sheets(*, quick: bool, turns: int) -> Iterator[Sheet]:
    """By number of gradients."""
    for gradients in (50,) if quick else (100, 1000, 5000):
        yield measure(gradients, turns)


def measure(gradients: int, turns: int) -> Sheet:
    """Node count, seconds to create a session, and time of a run, with one thread."""
    names = [f"g{number}" for number in range(gradients)]
    models = {
        "without a clip": small_gradients(names),
        "onnx-clip": clip_gradients(
            small_gradients(names), GradientClipByNorm(CLIP_NORM), gradients=names
        ),
        "two nodes a gradient": gathered(names),
    }
    created: Values = {name: [] for name in models}
    sessions: dict[str, Any] = {}
    for _ in range(max(2, turns // 2)):
        for name, model in models.items():
            data = model.SerializeToString()
            began = perf_counter()
            sessions[name] = open_session(data, 1)
            created[name].append(perf_counter() - began)
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    outputs = {name: session.run(None, {"x": x}) for name, session in sessions.items()}
    assert all(map(np.allclose, outputs["onnx-clip"], outputs["two nodes a gradient"]))
    works = {name: partial(session.run, None, {"x": x}) for name, session in sessions.items()}
    return Sheet(
        f"{gradients:,} gradients of 16 elements",
        "without a clip",
        {
            "run, ms": scaled(by_turns(works, turns), 1e3),
            "to create a session, s": created,
            "nodes": {name: [float(len(model.graph.node))] for name, model in models.items()},
        },
        compared=("run, ms", "to create a session, s"),
        ours=("onnx-clip",),
    )


def small_gradients(names: list[str]) -> onnx.ModelProto:
    """A gradient of each name, as an output."""
    return _model([_made(name, name) for name in names], names, [])


def gathered(names: list[str]) -> onnx.ModelProto:
    """The same, clipped by way of one vector of norms."""
    nodes, norms, scales = [], [], []
    for name in names:
        nodes += [
            _made(name, f"{name}/raw"),
            helper.make_node("ReduceL2", [f"{name}/raw"], [f"{name}/norm"], keepdims=1),
        ]
        norms.append(f"{name}/norm")
        scales.append(f"{name}/scale")
    nodes += [
        helper.make_node("Concat", norms, ["norms"], axis=0),
        helper.make_node("Div", ["limit", "norms"], ["ratios"]),
        helper.make_node("Min", ["ratios", "one"], ["scales"]),
        helper.make_node("Split", ["scales"], scales, axis=0),
        *(helper.make_node("Mul", [f"{name}/raw", f"{name}/scale"], [name]) for name in names),
    ]
    constants = {"limit": CLIP_NORM, "one": 1.0}
    held = [helper.make_tensor(n, TensorProto.FLOAT, [], [v]) for n, v in constants.items()]
    return _model(nodes, names, held)


def open_session(model: onnx.ModelProto | bytes, threads: int) -> Any:
    """A session that does not spin between runs, since others need the machine too."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _made(name: str, output: str) -> onnx.NodeProto:
    """A gradient like no other: ONNX Runtime would compute equal ones only once."""
    return helper.make_node("Mul", ["x", f"{name}/factor"], [output])


def _model(
    nodes: list[onnx.NodeProto], names: list[str], held: list[onnx.TensorProto]
) -> onnx.ModelProto:
    x, *outputs = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, SHAPE) for n in ("x", *names)
    )
    held = held + [
        helper.make_tensor(f"{name}/factor", TensorProto.FLOAT, [], [1.0 + number])
        for number, name in enumerate(names)
    ]
    graph = helper.make_graph(nodes, "gradients", [x], outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
