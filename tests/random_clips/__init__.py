"""Random clips of random gradients, against long double: `python tests/random_clips 300`."""

from random_clips.trying import newest_opset, tried

__all__ = ["newest_opset", "tried"]
