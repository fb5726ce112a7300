"""Clips that a graph has already, between its gradients and where its optimizer begins."""

from __future__ import annotations

from collections.abc import Iterator

from onnx_clip_pass.gradients.bottleneck import Bottlenecks
from onnx_clip_pass.gradients.chains import Link
from onnx_clip_pass.graph import Index
from onnx_clip_pass.graph.dominators import ROOT

__all__ = ["clip_nodes", "clipped_already"]

_OPS = {"Clip", "Max", "Min"}
_LIMITS = {*_OPS, "Where", "If"}
_NODES = {"InPlaceClipGradNorm", "InplaceClipGradNorm", "ClipGradNorm"}
_MOST_SEEN = 200


def clip_nodes(index: Index) -> list[str]:
    """Return the operators of a model that clip gradients by themselves."""
    there = (op for op in sorted(_NODES) if any(scope.numbers_of(op) for scope in index.scopes))
    return list(there)


def clipped_already(run: Bottlenecks) -> Iterator[tuple[str, str]]:
    """Yield the gradients that the graph clips, each with the operator that does it.

    Those are bounded element by element, or scaled by a number that is computed from the gradient
    itself and bounded.
    """
    chains, values = run.chains, run.values
    gradients = {values.find(found.gradient) for found in run.found}
    for start in run.lowest.values():
        at, clip = start, ""
        while at != ROOT and at not in gradients:
            link = chains.link[at]
            if Link.END in link:
                break  # behind it is the backward pass, which may be long
            if Link.BENT in link and values.op[at] in _OPS:
                clip = values.op[at]
            elif link == Link.NUMBER:
                clip = _bound(run, at) or clip
            at = chains.tree.above[at]
        if at in gradients and clip:
            yield values.name(at), clip


def _bound(run: Bottlenecks, vertex: int) -> str:
    """Return the operator that bounds the number by which a value is scaled; "" for none."""
    chains, values = run.chains, run.values
    core = chains.core[chains.tree.above[vertex]]
    for factor in values.takes[vertex]:
        if not factor or factor in chains.sources[vertex] or core not in chains.cone(factor).ends:
            continue
        seen, todo = {factor}, [factor]
        while todo and len(seen) < _MOST_SEEN:
            at = todo.pop()
            if values.op[at] in _LIMITS:
                return values.op[at]
            for each in values.takes[at][:_MOST_SEEN]:
                if each and each not in seen and values.is_scalar_like(each):
                    seen.add(each)
                    todo.append(each)
    return ""
