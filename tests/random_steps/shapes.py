"""What is drawn of a net before it is written: its layers, its losses, its batches."""

from __future__ import annotations

from dataclasses import dataclass

from .writer import Shape, Writer

__all__ = ["Layer", "Shapes", "described", "draw_shapes"]


@dataclass(frozen=True)
class Layer:
    """One layer; `owner` is the layer whose parameter it reads, itself if it is not tied."""

    kind: str
    shape: Shape
    owner: int


@dataclass(frozen=True)
class Shapes:
    """All that is drawn of a net but its numbers and spelling, so that it can be written again."""

    batch: int
    features: int
    outputs: int
    layers: tuple[Layer, ...]
    loss: str
    decay: int | None  # the layer whose parameter the loss itself keeps small
    second: bool  # a second loss, of the value in the middle
    batches: int  # micro-batches whose losses are averaged
    scaled: bool  # the backward pass starts from the loss times a scale
    low: bool  # the net computes in another precision than its parameters are kept in
    teacher: bool  # the first layer is held near a copy of itself
    smooth: bool  # no Relu: weights that an update makes zero would lie on its kink
    seed: int  # of what is drawn while the net is written


def draw_shapes(w: Writer, *, smooth: bool) -> Shapes:
    """Draw a net of one to four parameters that does something with its input."""
    draw = w.draw
    width = features = draw.randrange(2, 5)
    layers: list[Layer] = []
    for _ in range(draw.randrange(1, 5)):
        kinds = ["dense", "turned", "bias", "row", "gain", "log gain", "number", "full"]
        weights = [6, 1, 4, 1, 1, 0.5, 1, 0.3]
        kind = draw.choices(kinds, weights)[0] if layers else "dense"
        out = draw.randrange(1, 5)
        shape: Shape = {
            "dense": (width, out),
            "turned": (out, width),
            "row": (1, width),
            "number": draw.choice([(), (1,)]),
        }.get(kind, (width,))
        tied = [n for n, at in enumerate(layers) if at.kind == "dense" and at.shape[1] == width]
        if kind == "turned" and tied and draw.random() < 0.7:
            owner = draw.choice(tied)
            layers.append(Layer(kind, layers[owner].shape, owner))
            width = layers[owner].shape[0]
            continue
        layers.append(Layer(kind, shape, len(layers)))
        width = out if kind in ("dense", "turned") else width
    batch = draw.choice([1, 2, 3, 4, 5])
    layers = [
        Layer(a.kind, (batch, *a.shape) if a.kind == "full" else a.shape, a.owner) for a in layers
    ]
    loss = draw.choice(["mean", "mean", "sum", "entropy" if width > 1 else "mean", "half"])
    return Shapes(
        batch,
        features,
        width,
        tuple(layers),
        loss,
        draw.randrange(len(layers)) if draw.random() < 0.2 else None,
        draw.random() < 0.15,
        draw.choice([2, 3]) if draw.random() < 0.12 else 1,
        draw.random() < 0.15,
        draw.random() < 0.05,
        draw.random() < 0.06,
        smooth,
        draw.randrange(2**32),
    )


def described(shapes: Shapes) -> str:
    """The net in a few words."""
    kinds = ["tied" if a.owner != at else a.kind for at, a in enumerate(shapes.layers)]
    more = [
        text
        for text, is_so in (
            ("L2 in the loss", shapes.decay is not None),
            ("two losses", shapes.second),
            (f"{shapes.batches} micro-batches", shapes.batches > 1),
            ("loss scale", shapes.scaled),
            ("low precision", shapes.low),
            ("teacher", shapes.teacher),
        )
        if is_so
    ]
    return " + ".join([f"batch {shapes.batch}: {' '.join(kinds)} {shapes.loss}", *more])
