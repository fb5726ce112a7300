"""Shapes of all gradients of well-known nets, and arrays of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["SETS", "arrays_of"]

Shapes = list[tuple[int, ...]]


def resnet50() -> Shapes:
    """161 tensors, 25.6 M elements: convolutions, batch norms, one dense layer."""
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolutions = [
                (width, channels, 1, 1),
                (width, width, 3, 3),
                (4 * width, width, 1, 1),
            ]
            if block == 0:
                convolutions.append((4 * width, channels, 1, 1))
            for shape in convolutions:
                shapes += [shape, (shape[0],), (shape[0],)]
            channels = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def bert_base() -> Shapes:
    """199 tensors, 109 M elements: embeddings, twelve layers, a pooler."""
    hidden, wide = 768, 3072
    layer: Shapes = [(hidden, hidden), (hidden,)] * 4
    layer += [(hidden,), (hidden,), (wide, hidden), (wide,), (hidden, wide), (hidden,)]
    layer += [(hidden,), (hidden,)]
    embeddings: Shapes = [(30522, hidden), (512, hidden), (2, hidden)]
    return [*embeddings, (hidden,), (hidden,), *layer * 12, (hidden, hidden), (hidden,)]


SETS: dict[str, Callable[[], Shapes]] = {
    "on-device net": lambda: [(64, 784), (64,), (32, 64), (32,), (10, 32), (10,)],
    "ResNet-50": resnet50,
    "BERT-base": bert_base,
}


def arrays_of(shapes: Shapes) -> list[np.ndarray]:
    """Normal numbers from a fixed seed."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, np.float32) for shape in shapes]
