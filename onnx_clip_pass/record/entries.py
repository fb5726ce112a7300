"""The contents of a record, and each kind of entry in the types of JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, NamedTuple, Self, TypedDict

from onnx_clip_pass._version import __version__
from onnx_clip_pass.form import Count

__all__ = ["FORMATS", "SEALED", "ClipEntry", "Measure", "Record", "Uncovered"]

FORMATS = (1, 2, 3)
"""Those that are read; the last is written."""
SEALED = 3
"""The first format whose digest covers the record itself."""
_SHOWN = 4


class _ClipForm(TypedDict):
    """The fields of every entry of `clips`; the settings, as each clip names them, stand beside."""

    gradient: str
    parameter: str
    graph: str
    clip: str


class _SteeredForm(TypedDict, total=False):
    threshold_input: str
    state: str


@dataclass(frozen=True, slots=True)
class ClipEntry:
    """A gradient and its clip, which is as `Clip.to_dict` has it."""

    FORM: ClassVar[Any] = Annotated[dict[str, Any], _ClipForm, _SteeredForm]
    gradient: str
    parameter: str
    graph: str
    clip: Mapping[str, Any]
    threshold_input: str | None = None
    state: str | None = None

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Return the entry of an object that has this form."""
        own = {name: fields.get(name) for name in cls.__slots__ if name != "clip"}
        clip = {name: value for name, value in fields.items() if name not in own}
        return cls(**own, clip=clip)  # type: ignore[arg-type]

    def to_json(self) -> dict[str, Any]:
        """Return it as one object, the settings of the clip beside the rest."""
        about = {"gradient": self.gradient, "parameter": self.parameter, "graph": self.graph}
        steered = {"threshold_input": self.threshold_input, "state": self.state}
        steered = {name: value for name, value in steered.items() if value is not None}
        return {**about, **self.clip, **steered}


class Measure(NamedTuple):
    """An output that was added: which quantity it is, of which gradients, and of which group."""

    output: str
    quantity: str
    gradients: list[str]
    group: str


@dataclass(frozen=True, slots=True)
class Uncovered:
    """A trained parameter that is not clipped, since its gradient is not known.

    `parameter` is its name, `new` that of its new value, `formula` how that is computed
    (`W_new = Sub(W, step)`), `candidates` are values of which one may be the gradient, `why` says
    what stands in the way.
    """

    parameter: str
    new: str
    formula: str
    candidates: tuple[str, ...]
    why: str

    def to_json(self) -> dict[str, Any]:
        """Return it as an object."""
        return asdict(self) | {"candidates": list(self.candidates)}

    def in_words(self) -> str:
        """Return all of it as one line of a message."""
        may_be = " or ".join(map(repr, self.candidates[:_SHOWN]))
        if self.candidates[_SHOWN:]:
            may_be += f" or one of {len(self.candidates) - _SHOWN} more"
        end = f"; its gradient may be {may_be}" if may_be else "; no value may be its gradient"
        return f"{self.parameter!r}, whose new value is {self.formula}: {self.why}{end}"


@dataclass(slots=True)
class Record:
    """All that a rewrite did; the types of the fields are the form that a record must have.

    `clips` has an entry for each gradient: its name, parameter, graph, clip and settings. `named`
    are the gradients that the caller named, with the parameters given for them; None if gradients
    were searched for.
    `renamed` maps each changed name to what it was; `nodes`, `initializers`, `values`, `inputs` and
    `outputs` are the names of what was added. `order` says of graphs (by their number in
    `graphs_and_functions` the model before) whose nodes had to move in which runs (first, count) of
    their old numbers they are now. `emitted` has the output, the quantity, the gradients and the
    group of each output that is a metric. `imports` says what was given an import of the default
    operator set: a function by domain, name and overload, or the model, as an empty list. `states`
    are the inputs that are states of clips, each with the output that is its new value.

    `answers` are the gradients that slopes of the loss decided for, by parameter; `optimizer_ops`
    the operators that the caller knew, with the inputs that are the parameter and its gradient;
    `uncovered` has the trained parameters that are not clipped since their gradient is not known:
    their names, new values, candidates and reasons. These three are new in format 2; since format 3
    the digest covers the record.
    """

    version: str = __version__
    clips: list[ClipEntry] = field(default_factory=list)
    named: dict[str, str | None] | None = None
    norm_precision: str = "plain"
    nonfinite: str = "propagate"
    layout: str = "cpu"
    renamed: dict[str, str] = field(default_factory=dict)
    nodes: list[str] = field(default_factory=list)
    initializers: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    order: list[tuple[Count, list[tuple[Count, Count]]]] = field(default_factory=list)
    loss_scale: float | str = 1.0
    emitted: list[Measure] = field(default_factory=list)
    measures_only: bool = False
    digest: str = ""
    format: Count = FORMATS[-1]
    answers: dict[str, str] = field(default_factory=dict)
    optimizer_ops: dict[str, tuple[Count, Count]] = field(default_factory=dict)
    uncovered: list[Uncovered] = field(default_factory=list)
    imports: list[list[str]] = field(default_factory=list)
    states: dict[str, str] = field(default_factory=dict)

    @property
    def threshold_inputs(self) -> list[str]:
        """The inputs that set thresholds."""
        return [name for name in self.inputs if name not in self.states]

    def fields(self) -> dict[str, Any]:
        """Return all of it by name, in the types of JSON.

        Without what was not there at first in this format, where it says nothing: so it is as it
        was written before, and as the digest covers it.
        """
        found = {name: getattr(self, name) for name in Record.__slots__}
        for name in ("clips", "uncovered"):
            found[name] = [entry.to_json() for entry in found[name]]
        for name in ("imports", "states"):
            if not found[name]:
                del found[name]
        if self.layout == "cpu":
            del found["layout"]
        return found
