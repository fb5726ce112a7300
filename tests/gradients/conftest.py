"""Training steps as text, and the question that the tests of this folder ask of them.

Nearly every graph here is the net `x @ W` with the mean squared error against `t`; `BACKWARD` is
its loss and the gradient `g` of `W`. A test writes down only what happens to `g` after that.
"""

import re
from collections.abc import Callable, Mapping

import numpy as np
import onnx.parser
import pytest
from onnx import ModelProto, numpy_helper

from onnx_clip_pass import find_gradients

BACKWARD = """
    y = MatMul (x, W)
    error = Sub (y, t)
    square = Mul (error, error)
    loss = ReduceMean <keepdims = 0> (square)
    y_slope = Mul (error, slope)
    xT = Transpose <perm = [1, 0]> (x)
    g = MatMul (xT, y_slope)
"""
INPUTS = "float[N,4] x, float[N,3] t, float[4,3] W"
OUTPUTS = "float loss, float[4,3] W_new"
NUMBERS = {"slope": 0.1, "lr": 0.1, "minus_lr": -0.1, "one": 1.0, "two": 2.0, "zero": 0.0,
           "half": 0.5, "wd": 0.01, "mu": 0.9, "b1": 0.9, "a1": 0.1, "b2": 0.99, "a2": 0.01,
           "eps": 1e-8, "low": -1.0, "high": 1.0, "max_norm": 1.0, "scale": 1024.0}  # fmt: skip

Build = Callable[..., ModelProto]
Find = Callable[..., list[tuple[str, str]]]


def build_model(
    body: str,
    *,
    inputs: str = INPUTS,
    outputs: str = OUTPUTS,
    constants: Mapping[str, object] | None = None,
    functions: str = "",
    opset: int = 18,
) -> ModelProto:
    """Parse a graph; what `NUMBERS` and `constants` hold becomes an initializer if it is used."""
    model = onnx.parser.parse_model(
        "<ir_version: 8, opset_import: "
        f'["" : {opset}, "com.microsoft" : 1, "ai.onnx.preview.training" : 1, "local" : 1,'
        ' "vendor" : 1]>\n'
        f"step ({inputs}) => ({outputs}) {{{body}}}\n{functions}"
    )
    words = set(re.findall(r"[\w.]+", body))
    for name, value in (NUMBERS | dict(constants or {})).items():
        if name in words:
            array = np.array(value, np.float32) if isinstance(value, float) else np.asarray(value)
            model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


@pytest.fixture
def build() -> Build:
    """Text to model, see `build_model`."""
    return build_model


@pytest.fixture
def find() -> Find:
    """Text to pairs of a gradient's name and its parameter's."""

    def find_in(body: str, **options: object) -> list[tuple[str, str]]:
        found = find_gradients(build_model(body, **options))
        return [(gradient.name, gradient.parameter.name) for gradient in found]

    return find_in


@pytest.fixture
def backward() -> str:
    """The text of the net's loss and gradient."""
    return BACKWARD


@pytest.fixture
def build_after_backward() -> Build:
    """What is written behind `BACKWARD` to a model; `states` are more inputs of W's shape."""

    def build_in(
        body: str,
        *,
        states: str = "",
        more_inputs: str = "",
        more_outputs: str = "",
        **options: object,
    ) -> ModelProto:
        names = states.split()
        extra = "".join(f", float[4,3] {name}" for name in names) + more_inputs
        made = "".join(f", float[4,3] {name}_new" for name in names) + more_outputs
        return build_model(
            BACKWARD + body, **{"inputs": INPUTS + extra, "outputs": OUTPUTS + made} | options
        )

    return build_in


@pytest.fixture
def find_after_backward(build_after_backward: Build) -> Find:
    """Pairs for what is written behind `BACKWARD`, see `build_after_backward`."""

    def find_in(body: str, **options: object) -> list[tuple[str, str]]:
        found = find_gradients(build_after_backward(body, **options))
        return [(gradient.name, gradient.parameter.name) for gradient in found]

    return find_in
