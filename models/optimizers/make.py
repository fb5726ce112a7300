"""Make training steps of every kind of optimizer and update, for the stock ONNX Runtime.

Needs onnx and numpy. The nets are small and their backward passes written by hand; what differs
is how a gradient becomes a parameter's new value. Nearly no name tells what a value is.
"""

import adaptive
import around
import nets
import updates


def main() -> None:
    adaptive.write()
    updates.write()
    nets.write()
    around.write()


if __name__ == "__main__":
    main()
