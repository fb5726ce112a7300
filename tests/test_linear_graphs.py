"""Finding and clipping take twice the work for twice the graph, whatever there is more of."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import pytest
from counting import growth
from graphs import parse
from growing import KINDS, grown

from onnx_clip_pass import (
    Chain,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByValue,
    OnnxClipError,
    clip_gradients,
    find_gradients,
    strip,
)
from onnx_clip_pass.gradients.cones import Vertices
from onnx_clip_pass.gradients.counters import counters
from onnx_clip_pass.graph import Index
from onnx_clip_pass.rewrite import clip_in_place

LINEAR = 2.05
"""Twice the work for twice the input, and a little for what grows with its logarithm."""
CLIP = GradientClipByNorm(1.0)
REFUSED = {
    "sums_over_runs": "{} trained parameters are not known",
    "one_unknown_optimizer": "{} trained parameters are not known",
    "names_of_what_is_left_over": "no gradients found",
}
SIZES = {"functions": 400}
"""Of a kind of which one more takes little beside the rest."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_with_twice_as_many(kind: str):
    def prepare(count: int):
        model = grown(kind, count)

        def run() -> None:
            if kind == "penalties":  # found or asked about, either is linear
                with suppress(OnnxClipError):
                    clip_in_place(model, CLIP)
            elif kind not in REFUSED:
                clipped = clip_in_place(model, CLIP).clipped
                assert len(clipped) == (1 if kind == "uses_of_one" else count)
            else:
                with pytest.raises(OnnxClipError, match=REFUSED[kind].format(count)):
                    clip_in_place(model, CLIP)

        return run

    assert growth(prepare, SIZES.get(kind, 120)) < LINEAR


@pytest.mark.parametrize(
    "clip",
    [
        GradientClipByGlobalNorm(1.0),
        Chain(GradientClipByValue(1.0), GradientClipByGlobalNorm(1.0), CLIP),
    ],
    ids=["group", "chain"],
)
def test_clips_of_twice_as_many_gradients(clip):
    def prepare(count: int):
        model = grown("sgd", count)
        return lambda: clip_in_place(model, clip, emit=["norm"])

    assert growth(prepare, 100) < LINEAR


def test_a_chain_of_twice_as_many_clips():
    def prepare(count: int):
        model, clip = grown("sgd", 2), Chain(*[CLIP] * count)
        return lambda: clip_in_place(model, clip)

    assert growth(prepare, 200) < LINEAR


def test_gradients_that_are_named():
    def prepare(count: int):
        model = grown("names_alone", count)
        named = {f"w{n}_grad": f"w{n}" for n in range(count)}
        return lambda: clip_in_place(model, CLIP, gradients=named)

    assert growth(prepare, 200) < LINEAR


def test_finding_again_and_undoing():
    def prepare(count: int):
        clipped = clip_gradients(grown("sgd", count), CLIP)
        return lambda: (find_gradients(clipped), strip(clipped))

    assert growth(prepare, 100) < LINEAR


# -- what makes it so --------------------------------------------------------------------------


def test_sets_of_vertices_share_what_is_large():
    large = Vertices(range(1000))
    both = [Vertices([1000 + n], [large]) for n in range(1000)]
    assert all(999 in each and 1000 + n in each for n, each in enumerate(both))
    assert 1001 not in both[0]
    assert len({id(part) for each in both for part in each._parts}) == 1


def test_a_chain_of_sets_stays_small():
    found = Vertices()
    for number in range(10_000):
        found = Vertices([number], [found])
    assert sorted(found) == list(range(10_000))
    assert len(found._parts) <= 33
    assert not Vertices()


def test_counters_along_one_chain_of_outputs():
    """Each output is the one before and 1."""

    def prepare(count: int):
        names = [f"c{number}" for number in range(count + 1)]
        text = " ".join(f"{b} = Add({a}, one)" for a, b in pairwise(names))
        ports = ", ".join(f"int64 {name}" for name in names[1:])
        model = parse(f"s (int64 c0) => ({ports}) <int64 one = {{1}}> {{ {text} }}")
        main = Index(model).main
        assert dict(counters(main)) == {"c0": names[-1]}

        return lambda: list(counters(main))

    assert growth(prepare, 120) < LINEAR
