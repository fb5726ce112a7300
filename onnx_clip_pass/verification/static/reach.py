"""All that a read of a value leads to: written apart from the search that rewrites use.

A rewrite looks from gradients back to what they are computed from; this walks forward.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from onnx_clip_pass.graph import BY_NAME, OUTPUT, Index, Read, Scope

__all__ = ["ValueRef", "reach"]

ValueRef = tuple[Scope, str]
"""A value: the scope that defines it, and its name."""


def reach(
    index: Index,
    reads: Iterable[Read],
    *,
    stop: Collection[ValueRef] = (),
    next_iterations: bool = True,
) -> tuple[set[ValueRef], set[int]]:
    """All values that these reads lead to.

    Args:
        index: the model.
        reads: where to start.
        stop: values to note and not to follow.
        next_iterations: follow what a loop carries into its next iteration.

    Returns:
        The values, and the numbers of the outputs of the main graph.
    """
    todo, seen = list(reads), set(reads)
    values: set[ValueRef] = set()
    outputs: set[int] = set()
    for read in todo:  # grows while it is read
        if read.node == OUTPUT and read.scope is index.main:
            outputs.add(read.slot)
        for ref in _step(index, read, next_iterations):
            if ref in values:
                continue
            values.add(ref)
            if ref in stop:
                continue
            for further in index.readers_of(*ref):
                if further not in seen:
                    seen.add(further)
                    todo.append(further)
    return values, outputs


def _step(index: Index, read: Read, next_iterations: bool) -> list[ValueRef]:
    scope, number, slot = read
    if slot == BY_NAME:
        return [(scope, name) for name in scope.nodes[number].output if name]
    if number == OUTPUT:
        return _returned(index, scope, slot, next_iterations)
    node = scope.nodes[number]
    function = index.function_of(node)
    if function is not None:
        return [(function, function.inputs[slot])] if slot < len(function.inputs) else []
    made = [(scope, name) for name in node.output if name]
    states = _states(scope, number)
    if node.op_type not in ("Loop", "Scan") or (node.op_type == "Loop" and slot < 2):
        return made
    subgraphs = list(scope.subgraphs.get(number, {}).values())
    inner = [
        (subgraph, subgraph.inputs[slot]) for subgraph in subgraphs if slot < len(subgraph.inputs)
    ]
    at = slot - 2 if node.op_type == "Loop" else slot
    if at < states and at < len(node.output) and node.output[at]:
        inner.append((scope, node.output[at]))  # if it never runs
    return inner


def _returned(index: Index, scope: Scope, slot: int, next_iterations: bool) -> list[ValueRef]:
    found = []
    for caller, call in index.callers_of(scope):
        outputs = caller.nodes[call].output
        if slot < len(outputs) and outputs[slot]:
            found.append((caller, outputs[slot]))
    outer, number = scope.outer, scope.number
    if outer is None or number == OUTPUT:
        return found
    node = outer.nodes[number]
    at = slot - 1 if node.op_type == "Loop" else slot
    if at < 0:  # whether a Loop goes on
        return [(outer, name) for name in node.output if name]
    if at < len(node.output) and node.output[at]:
        found.append((outer, node.output[at]))
    if next_iterations and at < _states(outer, number):
        carried = at + 2 if node.op_type == "Loop" else at
        if carried < len(scope.inputs):
            found.append((scope, scope.inputs[carried]))
    return found


def _states(scope: Scope, number: int) -> int:
    """The number of values that a Loop or Scan carries from iteration to iteration."""
    node = scope.nodes[number]
    if node.op_type == "Loop":
        return max(len(node.input) - 2, 0)
    if node.op_type == "Scan":
        count = next((a.i for a in node.attribute if a.name == "num_scan_inputs"), 0)
        return max(len(node.input) - count, 0)
    return 0
