"""What other libraries made of given gradients, and the same with ours.

The records are `recorded/forms_*.json`; `recorded/README.md` says what they hold.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from graphs import run
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnx_clip_pass import (
    AdaptiveGradientClip,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByRMS,
    GradientClipByValue,
    Rule,
    clip_gradients,
)

RECORDED = Path(__file__).parent / "recorded"
Array = NDArray[Any]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class Case:
    """One recorded call, and the rules that are the same with us."""

    library: str
    form: str
    call: str
    settings: dict[str, Any]
    gradients: Arrays
    parameters: Arrays
    gives: Arrays
    rules: tuple[Rule, ...]

    @property
    def ours(self) -> str:
        """The call here, as one of the rules makes it."""
        return repr(next(rule.clip for rule in self.rules if rule.clip is not None))

    @property
    def is_sum(self) -> bool:
        """Whether the record has the sum over the samples only."""
        return self.settings.get("gives") == "sum"

    def by_graph(self) -> Arrays:
        """Our result, from a rewritten graph on ONNX Runtime."""
        inputs, outputs, nodes = [], [], []
        for name, array in self.gradients.items():
            kind = (TensorProto.FLOAT, array.shape)
            inputs.append(helper.make_tensor_value_info(f"{name} in", *kind))
            outputs.append(helper.make_tensor_value_info(f"{name} grad", *kind))
            nodes.append(helper.make_node("Identity", [f"{name} in"], [f"{name} grad"]))
        for name, array in self.parameters.items():
            inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape))
        graph = helper.make_graph(nodes, "forms", inputs, outputs)
        opset = helper.make_opsetid("", 17)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
        named = {f"{name} grad": name for name in self.gradients}
        clipped = clip_gradients(model, list(self.rules), gradients=named)
        feeds = {f"{name} in": array for name, array in self.gradients.items()} | self.parameters
        out = run(clipped, feeds)
        return self._summed({name: out[f"{name} grad"] for name in self.gradients})

    def by_apply(self) -> Arrays:
        """Our result on the arrays themselves."""
        out = dict(self.gradients)
        for rule in self.rules:
            picked = {name: out[name] for name in rule.need_clip}  # type: ignore[union-attr]
            if rule.clip is not None:
                out |= rule.clip.apply(picked, parameters=self.parameters)
        return self._summed(out)

    def difference(self, out: Arrays) -> float:
        """The largest difference, relative to the largest element that the result could have."""
        worst = 0.0
        for name, given in self.gives.items():
            ours = out[name].astype(np.float64)
            largest = float(np.max(np.abs(given.astype(np.float64)), initial=0.0))
            if self.is_sum:  # of elements that may cancel
                largest = float(np.max(np.abs(self.gradients[name]), initial=0.0))
            apart = float(np.max(np.abs(ours - given), initial=0.0))
            worst = max(worst, apart / largest if largest else apart)
        return worst

    def _summed(self, out: Arrays) -> Arrays:
        return {name: array.sum(axis=0) for name, array in out.items()} if self.is_sum else out


def cases(which: Callable[[Case], bool] = lambda case: True) -> list[Case]:
    """The recorded cases that `which` picks."""
    found = []
    for path in sorted(RECORDED.glob("forms_*.json")):
        for row in json.loads(path.read_text(encoding="utf-8"))["cases"]:
            case = _case(row)
            if which(case):
                found.append(case)
    return found


def _case(row: dict[str, Any]) -> Case:
    shapes = {entry["name"]: entry["shape"] for entry in row["gradients"]}
    gradients = {entry["name"]: _array(entry, entry["shape"]) for entry in row["gradients"]}
    is_sum = row["settings"].get("gives") == "sum"
    gives = {
        entry["name"]: _array(entry, shapes[entry["name"]][int(is_sum) :]) for entry in row["gives"]
    }
    parameters = {
        entry["name"]: _array(entry, entry["shape"]) for entry in row.get("parameters", [])
    }
    rules = tuple(_rules(row["form"], row["settings"], list(gradients)))
    return Case(
        row["library"], row["form"], row["call"], row["settings"],
        gradients, parameters, gives, rules,
    )  # fmt: skip


def _array(entry: dict[str, Any], shape: list[int]) -> Array:
    return np.array(entry["values"], np.float32).reshape(shape)


def _rules(form: str, settings: dict[str, Any], names: list[str]) -> list[Rule]:
    ord = float(settings.get("ord", 2))
    if form == "norm":
        clip = GradientClipByNorm(settings["clip_norm"], ord=ord, axes=settings.get("axes"))
        return [Rule([name], clip) for name in names]
    if form == "value":
        return [Rule(names, GradientClipByValue(settings["max"], settings["min"]))]
    if form == "rms":
        return [Rule(names, GradientClipByRMS(settings["threshold"]))]
    if form == "global_norm":
        alone = settings.get("left alone", [])
        all_names = [name for name in names if name not in alone]
        groups = settings.get("groups") or {
            "default_group": {"clip_norm": settings.get("clip_norm"), "of": all_names}
        }
        return [
            Rule(each["of"], GradientClipByGlobalNorm(each["clip_norm"], group_name=group, ord=ord))
            for group, each in groups.items()
        ]
    if form == "adaptive":
        return [
            Rule([name], AdaptiveGradientClip(settings["clipping"], settings["eps"], axes=axes))
            for name, axes in settings["axes"].items()
        ]
    limit = settings["clip_norm"]
    limits = limit if isinstance(limit, dict) else dict.fromkeys(names, limit)
    if form == "per_sample_norm":
        return [Rule([name], GradientClipByNorm(limits[name], per_sample=True)) for name in names]
    return [Rule(names, GradientClipByGlobalNorm(limit, per_sample=True))]
