"""Prove on a machine with a GPU what is said of clips on CUDA: docs/cuda.md.

    python benchmarks/on_cuda.py                  # all of it, in 8 minutes at most
    python benchmarks/on_cuda.py --only norms     # one part: forms, norms, use, cost
    python benchmarks/on_cuda.py --json found.json
    python benchmarks/on_cuda.py --provider cpu   # the same checks on the CPU
    python benchmarks/on_cuda.py --without-gpu    # where nodes run, and nothing else

Installs nothing. Needs onnxruntime-gpu; PyTorch, and scikit-learn with onnx-ad, if they are there.
Prints a table, and exits with code 1 if something is not as it is said.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnxruntime as ort

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from cuda_checks.cost import check_cost  # noqa: E402
from cuda_checks.forms import check_forms  # noqa: E402
from cuda_checks.outcome import (  # noqa: E402
    OutOfTimeError,
    Row,
    TimeLimit,
    exit_code,
    figures,
    table,
)
from cuda_checks.precision import check_precision  # noqa: E402
from cuda_checks.sessions import CPU, CUDA, Provider  # noqa: E402
from cuda_checks.stand_in import build  # noqa: E402
from cuda_checks.using import check_binding, check_training  # noqa: E402

Check = Callable[[Provider, TimeLimit], Iterator[Row]]
PARTS: dict[str, tuple[Check, ...]] = {
    "norms": (check_precision,),
    "use": (check_binding, check_training),
    "cost": (check_cost,),
    "forms": (check_forms,),  # the longest
}
_STANDS_IN = "ONNX_CLIP_CUDA_STANDS_IN"
PACKAGES = ("onnx-clip-pass", "onnx", "onnxruntime-gpu", "onnxruntime", "numpy", "torch")


def run(
    provider: Provider, limit: TimeLimit, parts: Mapping[str, tuple[Check, ...]]
) -> Iterator[Row]:
    """The rows of these parts; what has no time left, or breaks, is a fault."""
    for part, checks in parts.items():
        for check in checks:
            try:
                yield from check(provider, limit)
            except OutOfTimeError:
                yield Row(part, check.__name__, "fault", "the time was over before it was done")
            except Exception as error:  # one part that breaks leaves the others to be run
                said = " ".join(f"{type(error).__name__}: {error}".split())
                yield Row(part, check.__name__, "fault", said[:300])


def check_places(provider: Provider, limit: TimeLimit) -> Iterator[Row]:
    """The rows of forms on a device that computes nothing: where their nodes run."""
    return check_forms(provider, limit, computes=False)


def before_stand_ins(args: list[str]) -> int:
    """The exit code of this script in a process that finds libraries in the place of CUDA's."""
    with tempfile.TemporaryDirectory() as folder:
        build(Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so", Path(folder))
        paths = [folder, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        environment = os.environ | {_STANDS_IN: "1", "LD_LIBRARY_PATH": os.pathsep.join(paths)}
        return subprocess.run([sys.executable, __file__, *args], env=environment).returncode


def machine() -> dict[str, str]:
    """Where this runs and with what."""
    found = {"python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        found["gpu"] = subprocess.run(
            query, capture_output=True, text=True, timeout=20, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        found["gpu"] = "nvidia-smi says nothing"
    return found


def main(args: Sequence[str] | None = None) -> int:
    """Run the checks, print what they found, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--provider", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", choices=list(PARTS), action="append", help="repeatable")
    parser.add_argument("--minutes", type=float, default=8.0, help="the time for all of them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the rows there, too")
    parser.add_argument(
        "--without-gpu",
        action="store_true",
        help="where nodes run, before libraries in CUDA's place; needs onnxruntime-gpu and cc",
    )
    options = parser.parse_args(args)
    if options.without_gpu and _STANDS_IN not in os.environ:
        return before_stand_ins(sys.argv[1:] if args is None else list(args))
    provider = CUDA if options.provider == "cuda" else CPU
    if not provider.is_there:
        print(
            f"this ONNX Runtime {ort.__version__} has no {provider.name}, only "
            f"{', '.join(ort.get_available_providers())}: install onnxruntime-gpu in an "
            f"environment without onnxruntime, on a machine with an NVIDIA driver (docs/cuda.md)",
            file=sys.stderr,
        )
        return 1
    where = machine()
    print("\n".join(f"{name}: {what}" for name, what in where.items()), flush=True)
    rows = []
    parts = {"forms": (check_places,)} if options.without_gpu else PARTS
    chosen = {part: parts[part] for part in options.only or parts if part in parts}
    for row in run(provider, TimeLimit(60 * options.minutes), chosen):
        rows.append(row)
        print(f"{row.verdict:8}{row.part}: {row.what}", file=sys.stderr, flush=True)
    print(f"\n{table(rows)}")
    if options.json is not None:
        options.json.write_text(figures(rows, where), encoding="utf-8")
    return exit_code(rows)


if __name__ == "__main__":
    sys.exit(main())
