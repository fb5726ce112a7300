"""Libraries in the place of CUDA's, for ONNX Runtime's CUDA provider where there is no GPU.

They give memory and handles, and compute nothing, so that sessions are made and run as on a GPU but
for their results: which provider gets a node, and what is copied, is ONNX Runtime's own doing.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

__all__ = ["build"]

_OWN = Path(__file__).with_name("stand_in.c")
_GIVES_A_HANDLE = re.compile(
    r"(cudaStreamCreate|cudaEventCreate|cudaMemPoolCreate|cublasCreate|cublasLtCreate|cudnnCreate)"
    r"|cublasLt\w+Create$"
)
_BY_NAME = re.compile(rb"\0(cudnn[A-Z]\w+)\0")
_FOUND_BY_NAME = ("libcudnn.so.9", "libcuda.so.1")  # some releases load them as they run


def build(provider: Path, folder: Path) -> None:
    """Compile stand-ins for all of CUDA's libraries that a provider library asks for.

    Args:
        provider: ONNX Runtime's `libonnxruntime_providers_cuda.so`.
        folder: where to put them, for LD_LIBRARY_PATH.
    """
    needed = re.findall(r"\[(lib(?:cu|nvrtc)\w*\.so\.\d+)\]", _told("readelf", "-d", str(provider)))
    asked = re.findall(r"^ +U (\w+)(?:@+(lib\S+))?$", _told("nm", "-D", str(provider)), re.M)
    names = {name for name, _ in asked if name.startswith(("cu", "__cuda", "nvrtc"))}
    names |= {name.decode() for name in _BY_NAME.findall(provider.read_bytes())}
    versioned = {library for _, library in asked if library}
    source = folder / "stand_in.c"
    source.write_text(_source(names), encoding="utf-8")
    for library in dict.fromkeys([*needed, *_FOUND_BY_NAME]):
        command = ["cc", "-shared", "-fPIC", "-w", "-o", str(folder / library), str(source)]
        command.append(f"-Wl,-soname,{library}")
        if library in versioned:
            script = folder / f"{library}.map"
            script.write_text(f"{library} {{ global: *; }};\n")
            command.append(f"-Wl,--version-script={script}")
        subprocess.run(command, check=True)


def _source(names: Iterable[str]) -> str:
    """The functions that do something, and below them all others that are asked for."""
    own = _OWN.read_text(encoding="utf-8")
    there = set(re.findall(r"^\w[\w *]*?(\w+)\(", own, re.M))
    others = [
        f"int {name}(void **place) {{ return give(place, 256); }}"
        if _GIVES_A_HANDLE.match(name)
        else f"int {name}(void) {{ return 0; }}"
        for name in sorted(set(names) - there)
    ]
    return "\n".join([own, *others, ""])


def _told(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
