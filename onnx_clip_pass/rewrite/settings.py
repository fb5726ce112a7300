"""How a model is to be clipped, besides the clip itself: each option described once.

From its description follow the type that callers see, its default and check, its place in
signatures and docstrings, and its option on the command line.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import (
    Annotated,
    Any,
    Literal,
    TypedDict,
    TypeVar,
    Unpack,
    get_args,
    get_origin,
    get_type_hints,
)

from onnx_clip_pass.arguments import check_choice, check_flags, check_input_name
from onnx_clip_pass.clips import NonFinite, NormPrecision, Numerics
from onnx_clip_pass.errors import OnnxClipError, shown
from onnx_clip_pass.gradients.optimizer import NO_OPS, OptimizerOps, checked_ops
from onnx_clip_pass.rewrite.selecting import GradientNames, as_mapping
from onnx_clip_pass.rewrite.steering import LossScale, Steering
from onnx_clip_pass.rewrite.watching import Emit, EmitAs, Watch

__all__ = ["Option", "Options", "Settings", "described_options", "takes_options"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
_PLACE_IN_DOC = re.compile(r"^( +)\*\*options: .*\n(?:\1 +.*\n)*", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Option:
    """The description of an option.

    Args:
        default: what it is where it is not said.
        doc: it, in the words of a docstring.
        help: it, in those of the command line; "" where that has other options for it.
        metavar: what the command line calls its value.
    """

    default: Any
    doc: str
    help: str = ""
    metavar: str | None = None

    def is_said_by(self, value: object) -> bool:
        """Return whether a value is another one than the default."""
        if isinstance(self.default, Collection) and isinstance(value, Collection):
            return len(value) != 0 if not self.default else value != self.default
        return value is not self.default and value != self.default


class Options(TypedDict, total=False):
    """What `clip_gradients` takes besides the model and the clip."""

    gradients: Annotated[
        GradientNames,
        Option(
            None,
            "the gradients' names, if they are not to be searched for; a mapping also says their "
            "parameters.",
        ),
    ]
    skip: Annotated[
        str | Sequence[str],
        Option(
            (),
            "patterns of parameters or gradients to leave out.",
            "Leave these out. Repeatable.",
            "PATTERN",
        ),
    ]
    norm_precision: Annotated[
        NormPrecision,
        Option(
            "auto",
            '"plain", one ReduceL2 in float32 (float64 for float64); "wide", everything in '
            'float64, for any size and magnitude; "auto", plain where its error stays below 1e-5, '
            "else the cheapest form that keeps it.",
            "plain: one reduction. wide: all in float64. auto: plain where its error is below "
            "1e-5.",
        ),
    ]
    nonfinite: Annotated[
        NonFinite,
        Option(
            "propagate",
            'what becomes of a gradient with nan or inf in it: "propagate", what the formula '
            'gives, as in Paddle and PyTorch; "zero", zeros, all of it; "keep", it stays as it is.',
            "A gradient with nan or inf: as the formula has it, all zeros, or as it is.",
        ),
    ]
    threshold_input: Annotated[
        str | None,
        Option(
            None,
            "make the threshold an input of this name, of rank 0, with the given number as its "
            "default; float64 if one of its gradients is computed in float64, else float32.",
            "Make the threshold an input of this name, with the number as its default.",
            "NAME",
        ),
    ]
    loss_scale: Annotated[
        LossScale,
        Option(
            1.0,
            "what the loss, and so every gradient, was multiplied by: a number, or the name of a "
            "value of the main graph. Thresholds, and norms that are added as outputs, are then in "
            "the unit of the unscaled gradient; the gradients stay scaled.",
            "What the gradients are multiplied by: a number, or the name of a value. Thresholds "
            "are for the unscaled ones.",
            "VALUE",
        ),
    ]
    emit: Annotated[
        Sequence[Emit],
        Option(
            (),
            'outputs to add for each gradient: "norm", the norm that its clip limits, before '
            'clipping; "scale", what it is multiplied by; "clipped", whether that is below 1. '
            "Where a clip has several norms, the largest, and the smallest factor. A global norm "
            "has one more output, for the group.",
            "Add outputs: norm (before clipping), scale, clipped, or several: norm,scale",
            "WHAT",
        ),
    ]
    emit_as: Annotated[
        EmitAs,
        Option(
            "each",
            '"each", a scalar for each gradient, or "vector", one for all of them; it needs '
            "something to emit.",
            "A scalar for each gradient, or one vector for all.",
        ),
    ]
    measure_only: Annotated[
        bool, Option(False, "add these outputs, and clip nothing.", "Emit and clip nothing.")
    ]
    partial: Annotated[
        bool,
        Option(
            False,
            "accept that trained parameters whose gradients are not known stay unclipped: the "
            "record names them.",
            "Accept that trained parameters whose gradients are not known stay unclipped.",
        ),
    ]
    optimizer_ops: Annotated[
        OptimizerOps,
        Option(
            NO_OPS,
            'optimizers that onnx-clip does not know, such as `{"vendor::SGD": (0, 1)}`: operator '
            "to the numbers of its inputs that are the parameter and its gradient.",
        ),
    ]


@cache
def described_options() -> dict[str, tuple[Any, Option]]:
    """The type and the description of each of the `Options`, by name."""
    hints = get_type_hints(Options, include_extras=True)
    return {name: (hint.__origin__, hint.__metadata__[0]) for name, hint in hints.items()}


def takes_options(*without: str) -> Callable[[_Function], _Function]:
    """Show in the signature of a function with `**options: Unpack[Options]` what these are.

    So do its docstring, at the place of `**options`, if it says no more of them than "see
    `Options`".

    Args:
        without: those that the function does not take.
    """

    def told(function: _Function) -> _Function:
        own = {name: each for name, each in described_options().items() if name not in without}
        signature = inspect.signature(function)
        parameters = [
            each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD
        ]
        parameters += [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=type
            )
            for name, (type, option) in own.items()
        ]
        function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        place = _PLACE_IN_DOC.search(function.__doc__ or "")
        if place and "see `Options`" in place[0]:
            lines = [_described(name, option, place[1]) for name, (_, option) in own.items()]
            function.__doc__ = place.string[: place.start()] + "".join(lines)
            function.__doc__ += place.string[place.end() :]
        return function

    return told


def _described(name: str, option: Option, indent: str) -> str:
    further = f"{indent}    "
    text = textwrap.fill(
        f"{name}: {option.doc}", 100, initial_indent=indent, subsequent_indent=further
    )
    return f"{text}\n"


@dataclass(frozen=True, slots=True)
class Settings:
    """The options, checked, for one rewrite.

    `options` are all of them, those with defaults too; the rest is what is made of some: `named`
    maps the gradients that are named to their parameters, as far as those are given.
    """

    options: Options
    named: dict[str, str | None] | None
    numerics: Numerics
    steering: Steering
    watch: Watch
    optimizer_ops: OptimizerOps

    @classmethod
    def of(cls, **options: Unpack[Options]) -> Settings:
        """Check `Options`.

        Raises:
            TypeError: there is no such option.
            OnnxClipError: one of them cannot be meant.
        """
        described = described_options()
        if unknown := options.keys() - described.keys():
            raise TypeError(f"there is no option {min(unknown)!r} of clipping")
        values: Any = {name: option.default for name, (_, option) in described.items()} | options
        for name, (kind, _) in described.items():
            if kind is bool:
                check_flags(**{name: values[name]})
            elif get_origin(kind) is Literal:
                check_choice(name, values[name], kind)
        given: Options = values
        check_input_name(given["threshold_input"])
        gradients = given["gradients"]
        return cls(
            given,
            None if gradients is None else as_mapping(gradients),
            Numerics(given["norm_precision"], given["nonfinite"]),
            Steering(given["loss_scale"]),
            Watch(_words(given["emit"]), given["emit_as"], given["measure_only"]),
            checked_ops(given["optimizer_ops"]),
        )

    @property
    def said(self) -> tuple[str, ...]:
        """The names of the options that are not at their defaults."""
        values: Any = self.options
        return tuple(n for n, (_, o) in described_options().items() if o.is_said_by(values[n]))


def _words(emit: object) -> tuple[Any, ...]:
    """What is to be emitted, one word or several; `Watch` says which there are."""
    if isinstance(emit, str):
        return (emit,)
    if not isinstance(emit, Iterable):
        raise OnnxClipError(
            f"emit takes a list of {', '.join(get_args(Emit))}, and () for nothing, not "
            f"{shown(emit)}"
        )
    return tuple(emit)
