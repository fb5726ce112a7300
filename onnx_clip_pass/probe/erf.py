"""Erf in double precision, for which ONNX Runtime has no kernel on the CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial
from numpy.typing import NDArray
from onnx import FunctionProto, NodeProto
from onnx.parser import parse_function

from onnx_clip_pass.graph import attribute

__all__ = ["DOMAIN", "erf_functions", "is_erf"]

DOMAIN = "onnx_clip_pass.probe"
_ENDS = 5.0  # beyond which erf is 1 but for 2e-12
_DEGREE = 28  # leaves an error as large


def is_erf(node: NodeProto) -> bool:
    """Return whether a node is one that a function of `erf_functions` can stand for."""
    form = attribute(node, "approximate")
    return node.op_type == "Erf" or (node.op_type == "Gelu" and (form is None or form.s == b"none"))


def erf_functions(opset: int) -> Iterator[FunctionProto]:
    """Erf as x times a polynomial in x^2, and the Gelu that is made of it."""
    top = _ENDS**2
    odd = Chebyshev.interpolate(_erf_over_x, _DEGREE, [0, top])
    # Horner's rule in a variable from -1 to 1
    power = odd.convert(kind=Polynomial, domain=[0, top], window=[-1, 1])
    *lower, highest = np.asarray(power.coef, np.float64).tolist()
    nodes = [
        _constant("most", _ENDS), "least = Neg (most) low = Max (x, least) c = Min (low, most)",
        _constant("half", top / 2), _constant("one", 1),
        "s = Mul (c, c) r = Div (s, half) z = Sub (r, one)", _constant("p", highest),
    ]  # fmt: skip
    at = "p"
    for number, coefficient in reversed(list(enumerate(lower))):
        nodes += [_constant(f"k{number}", coefficient), f"m{number} = Mul ({at}, z)"]
        nodes.append(f"p{number} = Add (m{number}, k{number})")
        at = f"p{number}"
    nodes.append(f"y = Mul (c, {at})")
    gelu = [
        _constant("root", math.sqrt(2)), _constant("one", 1), _constant("two", 2),
        f"u = Div (x, root) e = {DOMAIN}.Erf (u) f = Add (e, one) h = Mul (x, f) y = Div (h, two)",
    ]  # fmt: skip
    for name, body in (("Erf", nodes), ("Gelu", gelu)):
        yield parse_function(
            f'<domain: "{DOMAIN}", opset_import: ["" : {opset}, "{DOMAIN}" : 1]> '
            f"{name} (x) => (y) {{ {' '.join(body)} }}"
        )


def _erf_over_x(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([math.erf(x) / x for x in np.sqrt(squares)])


def _constant(name: str, value: float) -> str:
    return f"{name} = Constant <value = double {{{float(value)!r}}}> ()"
