"""Export training steps of PyTorch: every optimizer of torch.optim, and whole architectures.

    python export_torch.py FOLDER [--only PATTERN] [--group torch.optim]

Made with Python 3.11, torch 2.13.0, onnxscript 0.7.2, onnx 1.23.2, pytorch_optimizer 4.1.0:

    pip install torch==2.13.0
    pip install onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 pytorch_optimizer==4.1.0
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch_library
from torch_networks import ARCHITECTURES as NETWORKS
from torch_networks import mlp
from torch_optimizers import FOR_ARCHITECTURES, TORCH_OPTIM, Choice
from torch_special import ARCHITECTURES as SPECIAL
from torch_steps import CannotExportError, Description, Network, Step, alike_branches, export
from torch_transformers import ARCHITECTURES as TRANSFORMERS

ARCHITECTURES = (*NETWORKS, *TRANSFORMERS, *SPECIAL)


def of_torch_optim() -> Iterator[tuple[Description, Callable[[], Step]]]:
    """Each optimizer of torch.optim with the options that change its formula."""
    for choice in TORCH_OPTIM:
        yield _case("torch.optim", choice)


def _case(source: str, choice: Choice) -> tuple[Description, Callable[[], Step]]:
    described = Description(choice.name, source, choice.optimizer, choice.options)
    return described, partial(_with_other_data, choice)


def _with_other_data(choice: Choice) -> Step:
    """Return the step on the first batches on which clipping changes no branch of the Python."""
    for seed in range(3, 23):
        step = Step(mlp(seed), choice.make, patched=choice.patched)
        if alike_branches(step):
            return step
    raise CannotExportError("clipping changes which branch the optimizer's Python takes")


def of_pytorch_optimizer() -> Iterator[tuple[Description, Callable[[], Step]]]:
    """Each optimizer of pytorch-optimizer."""
    for choice in torch_library.choices():
        yield _case("pytorch-optimizer", choice)


def of_architectures() -> Iterator[tuple[Description, Callable[[], Step]]]:
    """Each architecture with SGD with momentum, Adam and AdamW, and as a graph of gradients."""
    for make in ARCHITECTURES:
        name = make.__name__.replace("_", "-")
        for choice in FOR_ARCHITECTURES:
            described = Description(
                f"{name}-{choice.name}", "torch.optim", choice.optimizer, choice.options
            )
            yield described, partial(_step, make, choice)
        yield Description(f"{name}-gradients", "PyTorch", "none"), partial(_step, make, None)


def _step(make: Callable[[], Network], choice: Choice | None) -> Step:
    torch.manual_seed(1)  # of the weights that layers draw, whatever was exported before
    return Step(make(), choice.make if choice else None)


GROUPS: dict[str, Callable[[], Iterator[tuple[Description, Callable[[], Step]]]]] = {
    "torch.optim": of_torch_optim,
    "architectures": of_architectures,
    "pytorch-optimizer": of_pytorch_optimizer,
}


def _reason(error: BaseException) -> str:
    """Return the first line of the error that the others were raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, CannotExportError):
        return str(error)
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def main(arguments: list[str] | None = None) -> int:
    """Write one folder for each case, and `not_exported.json` with the reasons of the others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="*", help="a pattern of names")
    parser.add_argument("--group", choices=list(GROUPS), action="append")
    parser.add_argument("--retry", action="store_true", help="only what was not exported before")
    parser.add_argument("--verbose", action="store_true", help="whole tracebacks")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.disable(logging.ERROR)
    warnings.filterwarnings("ignore", "TF32 acceleration")
    reasons: dict[str, Any] = {}
    chosen.folder.mkdir(parents=True, exist_ok=True)
    path = chosen.folder / "not_exported.json"
    if path.exists():
        reasons = json.loads(path.read_text())
    done = 0
    for group in chosen.group or GROUPS:
        for described, make in GROUPS[group]():
            if not fnmatch.fnmatch(described.name, chosen.only):
                continue
            if chosen.retry and (chosen.folder / described.name / "truth.json").exists():
                continue
            began = time.perf_counter()
            reasons.pop(described.name, None)
            try:
                export(make(), described, chosen.folder)
            except Exception as error:  # whatever a library raises is the reason
                if chosen.verbose:
                    raise
                shutil.rmtree(chosen.folder / described.name, ignore_errors=True)
                reason = reasons[described.name] = _reason(error)
                print(f"{described.name}: not exported: {reason}", flush=True)
            else:
                done += 1
                print(f"{described.name}: {time.perf_counter() - began:.1f} s", flush=True)
            path.write_text(json.dumps(reasons, indent=1) + "\n")
    print(f"{done} exported")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
