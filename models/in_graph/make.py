"""Make training steps with the optimizer in the graph, for the stock ONNX Runtime.

Needs onnx and numpy. The net is nearly always ``tanh(x @ W + b)`` with the mean squared error
against ``t``; its backward pass is written by hand. The models differ in what lies between the
gradients and the parameters, and in how the values are called.
"""

import adaptive
import descent
import lookalikes
import shapes


def main() -> None:
    descent.write()  # in this order: all draw from one generator of random numbers
    adaptive.write()
    lookalikes.write()
    shapes.write()


if __name__ == "__main__":
    main()
