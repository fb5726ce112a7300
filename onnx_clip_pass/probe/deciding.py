"""The slopes of the loss decide which of given candidates is the gradient of each parameter.

All candidates are read in one run. Along each direction the loss must move as the gradient says:
the slope along v is <g, v>. Directions are taken from the span of a parameter's candidates, where
they differ most, with a random one beside it, which shows what no candidate holds.

1. All parameters are moved together. If the slopes along `_PATTERNS` random mixtures are those
   that one choice foretells (the first candidate of each, the second, the last, …), and those of
   no other choice, this is decided in some ten runs of the loss.
2. Where no choice fits, or noise hides what is at stake for some, the parameters are halved, and
   at last taken one by one.
3. A candidate fits whose own length is the slope along it; where none does for any parameter, one
   that is a multiple of it by an input that the loss does not read: the seed of the backward
   pass scales all gradients alike. A rate behind the gradient is told from it by standing later.
4. Equal candidates are one; the last of them in the graph is named.

States that are zero (moments at the first step) and scalar inputs (rates, seeds) are changed
before candidates are read, since at zero or one they hide what is computed from them. Parameters
are moved a little for the same reason; see `Harness.point`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.probe.harness import Harness
from onnx_clip_pass.probe.opening import open_harness
from onnx_clip_pass.probe.trial import Decision, SlopeCheck, Trial
from onnx_clip_pass.record import strip_if_clipped
from onnx_clip_pass.runtime import Provider

__all__ = ["Decision", "SlopeCheck", "check_slopes", "decide"]


def decide(
    model: ModelProto,
    questions: Mapping[str, Sequence[str]],
    *,
    feeds: Mapping[str, NDArray[Any]] | None = None,
    loss: str | None = None,
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    provider: Provider = "cpu",
) -> dict[str, Decision]:
    """Decide by the slopes of the loss between candidates for the gradient of each parameter.

    Args:
        model: a training graph; its weights are in it or among the feeds.
        questions: names of values of the main graph, in graph order, by parameter (an input or
            initializer of the main graph).
        feeds: arrays by input name; the others are made up.
        loss: the value whose slopes are taken; by default the scalar output that depends on the
            parameters and on no candidate.
        dims: sizes of symbolic dimensions.
        seed: of made-up feeds and of random directions.
        provider: where to run.

    Raises:
        OnnxClipError: the loss is not clear, not finite or not the same in two runs, the model
            does not run, or a name is unknown.
    """
    wanted = list(dict.fromkeys(name for names in questions.values() for name in names))
    with np.errstate(all="ignore"):
        harness = _open(model, questions, wanted, feeds, loss, dims, seed, provider)
        trial = Trial(harness, seed, by_scalars=True)
        trial.solve(trial.ask(questions, harness.point(1)))
        trial.agree()
    return {parameter: trial.decisions[parameter] for parameter in questions}


def check_slopes(
    model: ModelProto,
    gradients: Mapping[str, str],
    *,
    feeds: Mapping[str, NDArray[Any]] | None = None,
    loss: str | None = None,
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    provider: Provider = "cpu",
) -> list[SlopeCheck]:
    """Compare recorded gradients with the slopes of the loss: all at once, then where that fails.

    Args:
        model: a training graph.
        gradients: parameter by gradient, both of the main graph.
        feeds: as `decide` takes them; here states and scalar inputs stay as fed.
        loss: as `decide` takes it.
        dims: sizes of symbolic dimensions.
        seed: of made-up feeds and of random directions.
        provider: where to run.

    Returns:
        One for each pair, in order; `error` is infinite where nothing could be measured.

    Raises:
        OnnxClipError: as `decide`.
    """
    checks: dict[str, SlopeCheck] = {}
    with np.errstate(all="ignore"):
        parameters = list(gradients.values())
        harness = _open(model, parameters, list(gradients), feeds, loss, dims, seed, provider)
        for pairs in _once_each(gradients):
            trial = Trial(harness, seed)
            asked = trial.ask({p: [name] for name, p in pairs.items()}, harness.point(2), 2)
            checks |= {check.gradient: check for check in trial.check(asked)}
    nothing = {n: SlopeCheck(n, p, float("nan"), 0.0, float("inf")) for n, p in gradients.items()}
    return [checks.get(name, nothing[name]) for name in gradients]


def _once_each(gradients: Mapping[str, str]) -> Iterable[dict[str, str]]:
    """The pairs in groups in which no parameter stands twice."""
    left = dict(gradients)
    while left:
        firsts = {parameter: name for name, parameter in reversed(left.items())}
        group = {name: parameter for parameter, name in firsts.items()}
        yield group
        left = {name: parameter for name, parameter in left.items() if name not in group}


def _open(
    model: ModelProto,
    parameters: Iterable[str],
    wanted: Sequence[str],
    feeds: Mapping[str, NDArray[Any]] | None,
    loss: str | None,
    dims: Mapping[str, int] | None,
    seed: int,
    provider: Provider,
) -> Harness:
    model = strip_if_clipped(model)
    made = {name for node in model.graph.node for name in node.output}
    if faults := [f"{name!r} is no value of the main graph" for name in wanted if name not in made]:
        raise OnnxClipError("these candidates cannot be read:", faults)
    return open_harness(
        model, feeds, loss, dims, seed, provider,
        data=tuple(parameters), only=True, later=wanted,
    )  # fmt: skip
