"""Make the example of Paddle's GradientClipByNorm documentation as an ONNX training step.

Needs onnx and numpy. The net is one fully connected layer from 2 to 3 with relu; the loss is the
mean of its output; the gradients follow by hand and carry Paddle's suffix ``@GRAD``; SGD with
learning rate 0.1 updates both parameters in the graph.
"""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser

HERE = Path(__file__).parent
STEP = """
<ir_version: 8, opset_import: ["" : 17]>
train_step (float[N,2] x, float[2,3] "fc_0.w_0", float[3] "fc_0.b_0")
=> (float loss, float[2,3] "fc_0.w_0@NEW", float[3] "fc_0.b_0@NEW")
<float learning_rate = {0.1}, float zero = {0.0}, int64[1] rows = {0}>
{
    product = MatMul (x, "fc_0.w_0")
    sum = Add (product, "fc_0.b_0")
    out = Relu (sum)
    loss = ReduceMean <keepdims = 0> (out)

    size = Size (out)
    count = Cast <to = 1> (size)
    "out@GRAD" = Reciprocal (count)
    active = Greater (sum, zero)
    "sum@GRAD" = Where (active, "out@GRAD", zero)
    "x@T" = Transpose <perm = [1, 0]> (x)
    "fc_0.w_0@GRAD" = MatMul ("x@T", "sum@GRAD")
    "fc_0.b_0@GRAD" = ReduceSum <keepdims = 0> ("sum@GRAD", rows)

    "fc_0.w_0@STEP" = Mul (learning_rate, "fc_0.w_0@GRAD")
    "fc_0.w_0@NEW" = Sub ("fc_0.w_0", "fc_0.w_0@STEP")
    "fc_0.b_0@STEP" = Mul (learning_rate, "fc_0.b_0@GRAD")
    "fc_0.b_0@NEW" = Sub ("fc_0.b_0", "fc_0.b_0@STEP")
}
"""


def main() -> None:
    rng = np.random.default_rng(1)
    parameters = {
        "fc_0.w_0": rng.uniform(-1, 1, (2, 3)).astype(np.float32),
        "fc_0.b_0": np.zeros(3, np.float32),
    }
    model = onnx.parser.parse_model(STEP)
    for name, value in parameters.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    onnx.save(model, HERE / "train_step.onnx")
    x = rng.uniform(-100, 100, (10, 2)).astype(np.float32)
    np.savez(HERE / "train_step.inputs.npz", x=x, **parameters)


if __name__ == "__main__":
    main()
