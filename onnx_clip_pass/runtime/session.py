"""Sessions of ONNX Runtime.

ONNX Runtime is no dependency of the package, and is imported only when a session is opened.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from onnx.external_data_helper import load_external_data_for_model

from onnx_clip_pass.arguments import is_text
from onnx_clip_pass.errors import OnnxClipError, shown
from onnx_clip_pass.graph import Index, Scope, TensorType

__all__ = ["Arrays", "Provider", "Session", "open_session"]

Provider = Literal["cpu", "cuda"]
Arrays = dict[str, NDArray[Any]]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_FOLDER = "session.model_external_initializers_file_folder_path"
_FIRST_WITH_FOLDER = (1, 21)
_UNKNOWN_OP = re.compile(r"([\w.]+):(\w+)\(-?\d+\) is not a registered function/op")
_NO_KERNEL = re.compile(
    r"Could not find an implementation for (\w+)\((\d+)\) node with name '(.*)'"
)
_NOT_NUMPY = ("tensor(bfloat16)",)  # what NumPy arrays cannot carry to and from the runtime


class Session:
    """A model ready to run; `open_session` makes it.

    `inputs` are the names of all inputs that are no initializers, `outputs` those of the outputs.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._types = {value.name: value.type for value in inner.get_inputs()}
        self._held: Arrays = {}
        self._optional = {value.name for value in inner.get_overridable_initializers()}
        self.inputs: tuple[str, ...] = tuple(self._types)
        self.outputs: tuple[str, ...] = tuple(value.name for value in inner.get_outputs())
        types = [*self._types.values(), *(value.type for value in inner.get_outputs())]
        self._as_ort_values = any(kind in _NOT_NUMPY for kind in types)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run the model once.

        The feeds are copied, since accumulators of ONNX Runtime training overwrite theirs.

        Args:
            feeds: an array for each input; initializers that are inputs too may be left out.

        Returns:
            The outputs by name. An output listed twice is there once.

        Raises:
            OnnxClipError: a feed is missing, unknown or of the wrong type or shape, or the
                runtime fails.
        """
        missing = [name for name in self.inputs if name not in feeds]
        unknown = [name for name in feeds if name not in self._types and name not in self._optional]
        if missing or unknown:
            faults = [f"missing: {name!r}" for name in missing]
            faults += [f"no input of the model: {name!r}" for name in unknown]
            raise OnnxClipError("the feeds do not fit the model's inputs:", faults)
        copies = {name: np.array(value) for name, value in feeds.items()}
        names = list(dict.fromkeys(self.outputs))
        if not names:
            return {}  # the runtime takes an empty list for all outputs
        try:
            if self._as_ort_values:
                return self._run_ort_values(copies, names)
            found = self._inner.run(names, copies)
        except Exception as error:  # the runtime raises a dozen kinds
            raise OnnxClipError(f"ONNX Runtime failed to run the model: {_first(error)}") from error
        # copies: up to ONNX Runtime 1.25 an input that is an output comes back as the fed buffer
        found = found[::-1]  # taken off the end, so that none is there twice for long
        return {name: np.array(found.pop()) for name in names}

    def run_values(self, values: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
        """Run the model once from `value`s to outputs that may be fed again; nothing is copied.

        Raises:
            OnnxClipError: the runtime fails.
        """
        if not names:
            return {}
        try:
            found = self._inner.run_with_ort_values(names, dict(values))
        except Exception as error:  # the runtime raises a dozen kinds
            raise OnnxClipError(f"ONNX Runtime failed to run the model: {_first(error)}") from error
        return dict(zip(names, found, strict=True))

    def value(self, name: str, array: NDArray[Any]) -> Any:
        """Return an array as a value of the runtime, in the dtype of an input."""
        import onnxruntime as ort

        array = np.ascontiguousarray(array).reshape(array.shape)
        if self._types.get(name) in _NOT_NUMPY:
            bits = array.view(np.uint16)
            value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, TensorProto.BFLOAT16)
            self._held[name] = bits  # the value does not own what it reads
            return value
        return ort.OrtValue.ortvalue_from_numpy(array)

    @staticmethod
    def array(value: Any) -> NDArray[Any]:
        """Return the contents of a value of the runtime, bfloat16 too."""
        return _array_of(value)

    def _run_ort_values(self, feeds: Arrays, names: list[str]) -> Arrays:
        values = {name: self.value(name, array) for name, array in feeds.items()}
        found = self._inner.run_with_ort_values(names, values)
        return {name: _array_of(value) for name, value in zip(names, found, strict=True)}


def open_session(
    model: ModelProto | str | os.PathLike[str],
    *,
    provider: Provider = "cpu",
    optimize: bool = True,
    folder: Path | None = None,
) -> Session:
    """Load a model into ONNX Runtime.

    Args:
        model: a model, or the path of one, whose external data lies beside it.
        provider: where to run. Never falls back from CUDA to the CPU as a whole; single nodes
            that CUDA has no kernel for are run by the CPU, as always in ONNX Runtime.
        optimize: let the runtime fuse and fold nodes, which can change the last bits of results.
        folder: where the external data of a `ModelProto` lies.

    Raises:
        OnnxClipError: ONNX Runtime or the provider is missing, the model needs operators of
            another runtime, or the model cannot be loaded.
    """
    ort = _import_runtime()
    wanted = _PROVIDERS[provider] if is_text(provider) and provider in _PROVIDERS else None
    if wanted is None:
        raise OnnxClipError(f"expected the provider cpu or cuda, not {shown(provider)}")
    if provider == "cuda" and hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it does not find
            ort.preload_dlls()
    if wanted not in ort.get_available_providers():
        raise OnnxClipError(_no_provider(provider, ort))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    providers = [wanted] if provider == "cpu" else [wanted, _PROVIDERS["cpu"]]
    try:
        source = _source(model, folder, options, ort)
        inner = ort.InferenceSession(source, options, providers=providers)
    except OnnxClipError:
        raise
    except Exception as error:  # the runtime raises a dozen kinds
        raise OnnxClipError(_cannot_load(model, provider, error)) from error
    if wanted not in inner.get_providers():
        raise OnnxClipError(_no_provider(provider, ort))
    return Session(inner)


def _import_runtime() -> Any:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise OnnxClipError(
            "running a model needs ONNX Runtime, which is not installed; pip install onnxruntime "
            "(for CUDA onnxruntime-gpu)"
        ) from error
    return ort


def _source(
    model: ModelProto | str | os.PathLike[str], folder: Path | None, options: Any, ort: Any
) -> str | bytes:
    if not isinstance(model, ModelProto):
        path = Path(model)
        if not path.is_file():
            raise OnnxClipError(f"cannot read {str(path)!r}: there is no such file")
        return str(path)
    if folder is not None:
        version = tuple(int(part) for part in re.findall(r"\d+", ort.__version__)[:2])
        if version >= _FIRST_WITH_FOLDER:
            options.add_session_config_entry(_FOLDER, str(folder.resolve()))
        else:
            filled = ModelProto()
            filled.CopyFrom(model)
            load_external_data_for_model(filled, str(folder))
            model = filled
    try:
        return model.SerializeToString()
    except Exception as error:  # protobuf raises several kinds above 2 GB
        raise OnnxClipError(
            "the model is too large to be passed in memory (2 GB at most); save it with its "
            "weights as external data"
        ) from error


def _no_provider(provider: str, ort: Any) -> str:
    there = ", ".join(ort.get_available_providers())
    way_out = (
        "pip install onnxruntime-gpu in an environment without onnxruntime, the CPU wheel, on a "
        "machine with an NVIDIA driver and the CUDA version it asks for"
        if provider == "cuda"
        else "reinstall onnxruntime"
    )
    return (
        f"the provider {_PROVIDERS[provider]} of ONNX Runtime {ort.__version__} cannot be used; "
        f"there are: {there}; {way_out}"
    )


def _cannot_load(
    model: ModelProto | str | os.PathLike[str], provider: Provider, error: Exception
) -> str:
    name = "the model" if isinstance(model, ModelProto) else repr(str(model))
    kernel = _NO_KERNEL.search(str(error))
    if kernel is not None:
        op_type, version, node = kernel.groups()
        dtypes = _dtypes_at(model, op_type, node)
        return (
            f"ONNX Runtime cannot run {name}: its {provider.upper()} provider has no kernel for "
            f"{op_type} of opset {version} with {dtypes} (node {node!r}); run it where there is "
            f"one, or with another dtype"
        )
    found = _UNKNOWN_OP.search(str(error))
    if found is None:
        return f"ONNX Runtime cannot load {name}: {_first(error)}"
    domain, op_type = found.groups()
    called = f"{domain}:{op_type}"
    if domain == "com.microsoft":
        way_out = (
            "if it is one of ONNX Runtime training's operators, use an environment with "
            "onnxruntime-training"
        )
    elif domain == "ai.onnx.preview.training":
        way_out = "no release of ONNX Runtime executes the operators of this domain"
    else:
        way_out = "it belongs to another runtime, or to a newer ONNX Runtime"
    return f"this ONNX Runtime cannot run {name}: it does not have the operator {called}; {way_out}"


def _dtypes_at(model: ModelProto | str | os.PathLike[str], op_type: str, node: str) -> str:
    """The operands of the nodes of this op type and name, in words."""
    if not isinstance(model, ModelProto):
        model = onnx.load(model, load_external_data=False)
    index = Index(model)
    found: set[str] = set()
    for scope in index.scopes:
        for number in scope.numbers_of(op_type):
            if scope.nodes[number].name == node:
                kinds = [_type_of(index, scope, name) for name in scope.takes[number] if name]
                found.update(kind.dtype_name for kind in kinds if kind.dtype)
    return " or ".join(sorted(found)) or "inputs of its dtypes"


def _type_of(index: Index, scope: Scope, name: str) -> TensorType:
    declared = scope.type_of(name)
    if declared is not None and declared.dtype:
        return declared
    return index.inferred(scope.lookup(name) or scope, name)


def _first(error: Exception) -> str:
    """The first line of a message of the runtime, without its own prefix."""
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line).strip()


def _array_of(value: Any) -> NDArray[Any]:
    """The contents of an OrtValue on the CPU, bfloat16 too."""
    if value.data_type() not in _NOT_NUMPY:
        return np.array(value.numpy())
    shape = value.shape()
    data = ctypes.string_at(value.data_ptr(), 2 * int(np.prod(shape, dtype=np.int64)))
    kind = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    raw = np.frombuffer(data, np.uint16).reshape(shape)
    return np.array(raw.view(kind) if kind.itemsize == 2 else raw)
