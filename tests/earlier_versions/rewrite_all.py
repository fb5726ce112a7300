"""Rewrite small models with one version of onnx-clip, for tests/test_earlier_versions.py.

    python tests/earlier_versions/rewrite_all.py ONNX_CLIP FORMAT

ONNX_CLIP is the command of that version, FORMAT the number of the format of its records, which is
the folder that is written. README.md beside this file says from where to take the versions.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["CASES", "HERE", "ORIGINALS"]

HERE = Path(__file__).parent
ORIGINALS = HERE / "originals"
GLOBAL = "--clip global-norm --clip-norm 0.05"
CASES = {
    # by the first format that knows all of it: name, original, arguments
    1: {
        "norm": ("sgd.onnx", "--clip-norm 0.05"),
        "norm_of_columns": ("adam.onnx", "--clip-norm 0.05 --ord 1 --axes 0"),
        "norm_of_samples": ("sgd.onnx", "--clip-norm 0.02 --per-sample --need-clip W"),
        "norm_without_end": ("sgd.onnx", "--clip-norm inf --skip b"),
        "value": ("adam.onnx", "--clip value --max 0.01 --min -0.02"),
        "rms": ("adam.onnx", "--clip rms --threshold 0.01"),
        "adaptive": ("sgd.onnx", "--clip adaptive --clipping 0.01 --eps 0.01"),
        "global_norm": ("scan_micro_batches.onnx", f"{GLOBAL} --group-name all"),
        "global_norm_of_moved": ("early_update.onnx", GLOBAL),
        "global_norm_of_steps": ("two_steps.onnx", f"{GLOBAL} --emit norm --emit-as vector"),
        "chain": ("sgd.onnx", "--rules chain.toml"),
        "wide_zero": ("sgd.onnx", f"{GLOBAL} --norm-precision wide --nonfinite zero"),
        "keep": ("mixed_precision.onnx", "--clip-norm 0.05 --nonfinite keep"),
        "input_and_outputs": ("sgd.onnx", f"{GLOBAL} --threshold-input most --emit norm,scale"),
        "loss_scale": (
            "loss_scaling.onnx",
            "--gradient W_grad_scaled --gradient b_grad_scaled --loss-scale loss_scale",
        ),
        "measured": ("sgd.onnx", "--measure-only --emit norm --loss-scale 8"),
        "probed": ("gradients.onnx", "--probe --clip-norm 0.05"),
        "in_function": ("function_called_twice.onnx", "--clip-norm 0.05"),
        "in_if": ("if_updates_inside.onnx", "--clip-norm 0.05"),
        "in_loop": ("loop_steps.onnx", "--clip-norm 0.05"),
        "in_training_info": ("training_info.onnx", GLOBAL),
        "at_step": ("artifacts", "--at step --clip-norm 0.05"),
        "at_micro_batch": ("artifacts", f"{GLOBAL} --at micro-batch"),
    },
    2: {
        "partial": ("one_unknown.onnx", "--clip-norm 0.05 --partial --no-run"),
        "decided_by_slopes": ("penalty.onnx", "--clip-norm 0.05"),
        "optimizer_op": (
            "unknown_operator.onnx",
            "--clip-norm 0.05 --optimizer-op vendor::SGD:parameter=0,gradient=1",
        ),
    },
    3: {
        "layout": ("sgd.onnx", "--clip-norm 0.05 --layout cuda"),
        "autoclip": ("sgd.onnx", "--clip autoclip --percentile 20 --history 4"),
    },
}


def main() -> None:
    command, number = sys.argv[1:]
    folder = HERE / number
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for since, cases in CASES.items():
        for name, (original, arguments) in cases.items():
            if since <= int(number):
                target = folder / (name + Path(original).suffix)
                call = [command, "rewrite", ORIGINALS / original, "-o", target, *arguments.split()]
                subprocess.run(call, cwd=HERE, check=True)
    for beside in folder.glob("*.npz"):  # first values of states, which any version can make
        beside.unlink()


if __name__ == "__main__":
    main()
