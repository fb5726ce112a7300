"""Make value-and-gradient graphs with onnx-ad, to run on the stock ONNX Runtime.

Needs onnx-ad 0.3.0, onnx and numpy. The forward passes are written by hand, loss included;
``onnx_ad.reverse`` adds the backward pass, the seed ``adj_loss`` and the outputs ``adj_<input>``.
The models vary in operators, opset, batch, layout and in how the parameters come in.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx_ad import reverse

HERE = Path(__file__).parent
RNG = np.random.default_rng(23)
MSE = """
    error = Sub (y, t)
    square = Mul (error, error)
    loss = ReduceMean <keepdims = 0> (square)
"""
MLP = f"""
    z = MatMul (x, W1)
    zb = Add (z, b1)
    h = Tanh (zb)
    y = Gemm <transB = 1> (h, W2, b2)
    {MSE}
"""
Arrays = dict[str, np.ndarray]


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def mlp_parameters() -> Arrays:
    return {"W1": normal(5, 6), "b1": normal(6), "W2": normal(3, 6), "b2": normal(3)}


def declare(name: str, value: np.ndarray, batch: str | None = None) -> str:
    """Return the declaration of an input; ``batch`` replaces the first dimension."""
    kind = {"float32": "float", "float64": "double", "int64": "int64"}[value.dtype.name]
    shape = [str(size) for size in value.shape]
    if batch:
        shape[0] = batch
    return f'{kind}[{",".join(shape)}] "{name}"' if shape else f'{kind} "{name}"'


def gradients_of(
    name: str,
    body: str,
    data: Mapping[str, np.ndarray],
    parameters: Mapping[str, np.ndarray],
    *,
    opset: int,
    batch: str | None = "batch",
    layout: str = "onnx",
    constants: Mapping[str, np.ndarray] | None = None,
    differentiate_data: bool = False,
    kind: str = "float",
) -> onnx.ModelProto:
    """Differentiate the loss of ``body`` by all parameters, which are plain inputs."""
    inputs = [declare(key, value, batch) for key, value in data.items()]
    inputs += [declare(key, value) for key, value in parameters.items()]
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> {name} ({", ".join(inputs)})'
    forward = onnx.parser.parse_model(f"{text} => ({kind} loss) {{{body}}}")
    forward.ir_version = 10 if opset > 20 else 8
    for key, value in (constants or {}).items():
        forward.graph.initializer.append(onnx.numpy_helper.from_array(value, key))
    chosen = None if differentiate_data else list(parameters)
    return reverse(forward, inputs=chosen, outputs=["loss"], layout=layout)


def save(
    name: str,
    model: onnx.ModelProto,
    data: Mapping[str, np.ndarray],
    parameters: Mapping[str, np.ndarray],
    seed: np.ndarray | None = None,
) -> None:
    """Save the model and a feed for every input it has."""
    seed = np.ones(1, np.float32) if seed is None else seed
    known = {**data, **parameters, "adj_loss": seed}
    onnx.save(model, HERE / f"{name}.onnx")
    feeds = {value.name: known[value.name] for value in model.graph.input}
    np.savez(HERE / f"{name}.inputs.npz", **feeds)


def embed(model: onnx.ModelProto, parameters: Mapping[str, np.ndarray], keep_inputs: bool) -> None:
    """Make the parameters initializers, with or without their inputs."""
    for key, value in parameters.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, key))
    if not keep_inputs:
        inputs = [value for value in model.graph.input if value.name not in parameters]
        del model.graph.input[:]
        model.graph.input.extend(inputs)


def perceptrons() -> None:
    """Save the same small net in several dresses."""
    data = {"x": normal(4, 5), "t": normal(4, 3)}

    parameters = mlp_parameters()
    model = gradients_of("mlp_tanh", MLP, data, parameters, opset=13)
    save("mlp_tanh", model, data, parameters)

    parameters = mlp_parameters()
    model = gradients_of(
        "mlp_casadi_layout", MLP, data, parameters, opset=15, batch=None, layout="casadi"
    )
    embed(model, parameters, keep_inputs=True)
    save("mlp_casadi_layout", model, data, parameters, np.ones((1, 1), np.float32))

    parameters = mlp_parameters()
    model = gradients_of("mlp_initializers", MLP, data, parameters, opset=20)
    embed(model, parameters, keep_inputs=False)
    save("mlp_initializers", model, data, parameters)

    parameters = mlp_parameters()
    model = gradients_of(
        "mlp_data_gradients", MLP, data, parameters, opset=21, differentiate_data=True
    )
    save("mlp_data_gradients", model, data, parameters)

    double = {key: value.astype(np.float64) for key, value in data.items()}
    parameters = {key: value.astype(np.float64) for key, value in mlp_parameters().items()}
    model = gradients_of("mlp_float64", MLP, double, parameters, opset=22, kind="double")
    save("mlp_float64", model, double, parameters, np.ones(1))

    parameters = mlp_parameters()
    model = gradients_of("mlp_external_data", MLP, data, parameters, opset=18)
    embed(model, parameters, keep_inputs=False)
    onnx.external_data_helper.convert_model_to_external_data(
        model, location="weights.bin", size_threshold=64
    )
    (HERE / "external_data").mkdir(exist_ok=True)
    (HERE / "external_data" / "weights.bin").unlink(missing_ok=True)
    save("external_data/mlp", model, data, parameters)

    parameters = mlp_parameters()
    model = gradients_of("mlp_sgd", MLP, data, parameters, opset=22)
    update(model, parameters)
    save("mlp_sgd", model, data, parameters)


def update(model: onnx.ModelProto, parameters: Mapping[str, np.ndarray]) -> None:
    """Replace the gradient outputs by an SGD step, behind a Reshape to the parameter's shape."""
    del model.graph.output[1:]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.1, np.float32), "lr"))
    for key, value in parameters.items():
        shape = onnx.numpy_helper.from_array(np.array(value.shape), f"{key}/shape")
        model.graph.initializer.append(shape)
        model.graph.node.extend(
            [
                onnx.helper.make_node("Reshape", [f"adj_{key}", f"{key}/shape"], [f"{key}/flat"]),
                onnx.helper.make_node("Mul", ["lr", f"{key}/flat"], [f"{key}/step"]),
                onnx.helper.make_node("Sub", [key, f"{key}/step"], [f"{key}/new"]),
            ]
        )
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(
                f"{key}/new", onnx.TensorProto.FLOAT, list(value.shape)
            )
        )


def other_nets() -> None:
    """Save nets with other operators."""
    data = {"x": normal(3, 2, 5, 5), "t": normal(3, 3)}
    parameters = {"kernel": normal(4, 2, 3, 3), "shift": normal(4), "W": normal(4, 3)}
    body = f"""
        c = Conv <pads = [1, 1, 1, 1]> (x, kernel, shift)
        r = Relu (c)
        p = ReduceMean <axes = [2, 3], keepdims = 0> (r)
        y = MatMul (p, W)
        {MSE}
    """
    model = gradients_of("cnn_relu", body, data, parameters, opset=17, batch=None)
    save("cnn_relu", model, data, parameters)

    data = {"x": normal(4, 5), "t": np.eye(3, dtype=np.float32)[[0, 2, 1, 1]]}
    parameters = {"W1": normal(5, 6), "gain": normal(6), "offset": normal(6), "W2": normal(6, 3)}
    body = """
        z = MatMul (x, W1)
        n = LayerNormalization (z, gain, offset)
        y = MatMul (n, W2)
        p = LogSoftmax (y)
        picked = Mul (p, t)
        total = ReduceSum <keepdims = 0> (picked, axis)
        mean = ReduceMean <keepdims = 0> (total)
        loss = Neg (mean)
    """
    model = gradients_of(
        "layernorm_softmax", body, data, parameters, opset=17, constants={"axis": np.array([1])}
    )
    save("layernorm_softmax", model, data, parameters)

    data = {"x": normal(4, 5), "t": normal(4, 3)}
    parameters = {"A": normal(5, 3), "B": normal(5, 3), "bias": normal(3)}
    body = f"S = Add (A, B)  z = MatMul (x, S)  y = Add (z, bias)  {MSE}"
    model = gradients_of("params_added", body, data, parameters, opset=18)
    save("params_added", model, data, parameters)

    data = {"x": normal(4, 3), "t": normal(4, 3)}
    parameters = {"scale": np.array(0.6, np.float32), "shift": normal(1)}
    body = f"z = Mul (x, scale)  y = Add (z, shift)  {MSE}"
    model = gradients_of("scalar_parameter", body, data, parameters, opset=20)
    save("scalar_parameter", model, data, parameters)

    data = {"tokens": RNG.integers(0, 7, (4, 3)), "t": normal(4, 3)}
    parameters = {"table": normal(7, 5), "W": normal(5, 3)}
    body = f"""
        e = Gather (table, tokens)
        m = ReduceMean <keepdims = 0> (e, middle)
        y = MatMul (m, W)
        {MSE}
    """
    model = gradients_of(
        "embedding", body, data, parameters, opset=21, constants={"middle": np.array([1])}
    )
    save("embedding", model, data, parameters)

    data = {"x": normal(4, 2, 3), "t": normal(1, 2, 5)}
    parameters = {"W": normal(1, 15, 3) / 2, "R": normal(1, 15, 5) / 2, "bias": normal(1, 30) / 2}
    body = f'"", y = GRU <hidden_size = 5> (x, W, R, bias)  {MSE}'
    model = gradients_of("gru", body, data, parameters, opset=18, batch=None)
    save("gru", model, data, parameters)


def main() -> None:
    perceptrons()
    other_nets()


if __name__ == "__main__":
    main()
