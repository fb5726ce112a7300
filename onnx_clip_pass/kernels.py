"""The operators that ONNX Runtime has kernels for, by provider, opset and dtype.

Read from `kernels.tsv`, whose head says where it comes from. A clip must be made of nodes that both
providers have kernels for; where one has none, the report says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Literal, NamedTuple

import onnx

__all__ = ["Need", "Provider", "missing", "since"]

Provider = Literal["CPU", "CUDA"]

_LATER: dict[Provider, tuple[str, int]] = {"CUDA": ("1.27", 26)}
"""The release of ONNX Runtime that has the kernels which the table lacks, and up to which opset.

Tried with 1.26.0, which is as the table says, and with 1.27.0 and 1.31.1: docs/cuda.md.
"""

_DTYPES = {"float32": "float", "float64": "double"}


class Need(NamedTuple):
    """An operator of the default domain at an opset, and the dtypes that it takes and gives."""

    op_type: str
    opset: int
    dtypes: tuple[str, ...]


class _Kernel(NamedTuple):
    first: int
    last: int
    parameter: str
    dtypes: frozenset[str]


def missing(provider: Provider, needs: Iterable[Need]) -> list[Need]:
    """Those of the needs for which the provider has no kernel."""
    return sorted({need for need in needs if not _has(provider, need)})


def since(provider: Provider, needs: Iterable[Need]) -> str | None:
    """Return the release that has kernels for all of these needs, which the table lacks, if any."""
    release, last = _LATER.get(provider, ("", 0))
    return release if all(need.opset <= last for need in needs) else None


def _has(provider: Provider, need: Need) -> bool:
    try:
        version = onnx.defs.get_schema(need.op_type, need.opset, "").since_version
    except onnx.defs.SchemaError:
        return False
    kernels = [
        kernel
        for kernel in _table().get((provider, need.op_type), ())
        if kernel.first <= version <= kernel.last
    ]
    return bool(kernels) and all(
        _DTYPES.get(dtype, dtype) in kernel.dtypes
        for kernel in kernels
        for dtype in _of_parameter(need, kernel.parameter)
    )


def _of_parameter(need: Need, parameter: str) -> tuple[str, ...]:
    """The dtypes that a type parameter stands for; Cast takes T1 and gives T2."""
    if need.op_type == "Cast":
        return need.dtypes[:1] if parameter == "T1" else need.dtypes[1:]
    return need.dtypes[:1]


@cache
def _table() -> dict[tuple[str, str], list[_Kernel]]:
    table: dict[tuple[str, str], list[_Kernel]] = {}
    text = resources.files("onnx_clip_pass").joinpath("kernels.tsv").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if not line.startswith("#")]
    for row in rows[1:]:
        provider, op_type, opsets, parameter, dtypes = row.split("\t")
        bounds = [int(bound) for bound in opsets.strip("[]+").split(", ")]
        kernel = _Kernel(bounds[0], bounds[-1], parameter, frozenset(dtypes.split(",")))
        table.setdefault((provider, op_type), []).append(kernel)
    return table
