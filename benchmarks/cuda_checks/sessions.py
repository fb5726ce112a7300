"""Sessions on a provider, and where their nodes ran."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from onnx_clip_pass.runtime import Session

__all__ = ["CPU", "CUDA", "Placement", "Provider", "device_value", "open_inner", "run_profiled"]

_ENDING = "_kernel_time"
_COPIES = ("MemcpyFromHost", "MemcpyToHost")


@dataclass(frozen=True)
class Provider:
    """A provider: its name in ONNX Runtime, and that of its device."""

    name: str
    device: str

    @property
    def is_there(self) -> bool:
        """Return whether this ONNX Runtime has it, its libraries loaded."""
        if self.device == "cuda" and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        return self.name in ort.get_available_providers()


CUDA = Provider("CUDAExecutionProvider", "cuda")
CPU = Provider("CPUExecutionProvider", "cpu")


@dataclass(frozen=True)
class Placement:
    """Where the nodes of a session ran.

    `elsewhere` are those of the nodes asked about that another provider ran, by op type;
    `unseen` those that nobody ran; `copies` counts all nodes that copy between devices.
    """

    elsewhere: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()
    copies: int = 0

    @classmethod
    def of(
        cls, events: Iterable[Mapping[str, Any]], nodes: Iterable[str], provider: str
    ) -> Placement:
        """Read it off the events of ONNX Runtime's profile, of one run or several.

        Args:
            events: of the profile.
            nodes: the names of those that are asked about.
            provider: the name of the one that should run them.
        """
        ran: dict[str, tuple[str, str]] = {}
        for event in events:
            name, args = event.get("name", ""), event.get("args", {})
            if name.endswith(_ENDING) and "provider" in args:
                ran[name.removesuffix(_ENDING)] = (args["op_name"], args["provider"])
        asked = list(nodes)
        elsewhere: dict[str, tuple[str, ...]] = {}
        for name in asked:
            op_type, where = ran.get(name, ("", provider))
            if where != provider:
                elsewhere[op_type] = (*elsewhere.get(op_type, ()), name)
        return cls(
            elsewhere,
            tuple(name for name in asked if name not in ran),
            sum(op_type in _COPIES for op_type, _ in ran.values()),
        )


def open_inner(
    model: onnx.ModelProto,
    provider: Provider,
    *,
    optimize: bool = True,
    profile: Path | None = None,
    **options: str,
) -> ort.InferenceSession:
    """A session; `options` are the provider's, such as use_tf32 of CUDA's.

    Raises:
        RuntimeError: the session does without the provider.
    """
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    if not optimize:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile)
    providers: list[Any] = [(provider.name, options) if options else provider.name]
    if provider != CPU:
        providers.append(CPU.name)
    inner = ort.InferenceSession(model.SerializeToString(), settings, providers=providers)
    if inner.get_providers()[0] != provider.name:
        raise RuntimeError(f"the session runs on {inner.get_providers()}, not on {provider.name}")
    return inner


def run_profiled(
    model: onnx.ModelProto,
    provider: Provider,
    feeds: Iterable[Mapping[str, np.ndarray]],
    nodes: Iterable[str],
) -> tuple[list[dict[str, np.ndarray]], Placement]:
    """Run a model, not optimized, with each of several feeds; its outputs, and where nodes ran."""
    with tempfile.TemporaryDirectory() as folder:
        inner = open_inner(model, provider, optimize=False, profile=Path(folder, "profile"))
        session = Session(inner)
        outputs = [session.run(each) for each in feeds]
        events = json.loads(Path(inner.end_profiling()).read_text(encoding="utf-8"))
    return outputs, Placement.of(events, nodes, provider.name)


def device_value(array: np.ndarray, provider: Provider) -> ort.OrtValue:
    """An array in the memory of the provider's device."""
    return ort.OrtValue.ortvalue_from_numpy(array, provider.device, 0)
