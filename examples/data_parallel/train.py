"""Data-parallel training: average the gradients over workers, then clip, then step.

    torchrun --standalone --nproc-per-node 2 train.py gradients.onnx clip.onnx parameters.npz

Every worker computes gradients on its share of each batch with `gradients.onnx`. They are averaged
by torch.distributed, and every worker clips the average with `clip.onnx`. All workers so hold the
same parameters after each step, those that one worker would have on the whole batch.
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime as ort
import torch
import torch.distributed as dist

STEPS, BATCH, LEARNING_RATE = 20, 32, 0.5
PARAMETERS = ("W1", "W2")


def average(gradient: np.ndarray) -> np.ndarray:
    """The mean of the workers' gradients."""
    tensor = torch.from_numpy(gradient)
    dist.all_reduce(tensor)
    return (tensor / dist.get_world_size()).numpy()


def main(gradients_model: str, clip_model: str, result: str) -> None:
    """Train, and let the first worker write the parameters."""
    dist.init_process_group("gloo")
    rank, workers = dist.get_rank(), dist.get_world_size()
    gradients_of = ort.InferenceSession(gradients_model, providers=["CPUExecutionProvider"])
    clip = ort.InferenceSession(clip_model, providers=["CPUExecutionProvider"])

    rng = np.random.default_rng(0)  # the same on all workers
    parameters = {
        "W1": rng.normal(size=(8, 16)).astype(np.float32),
        "W2": rng.normal(size=(16, 4)).astype(np.float32),
    }
    for _ in range(STEPS):
        x = rng.normal(size=(BATCH, 8)).astype(np.float32)
        t = np.sin(x[:, :4]).astype(np.float32)
        share = slice(rank * BATCH // workers, (rank + 1) * BATCH // workers)
        names = [f"{name}_grad" for name in PARAMETERS]
        found = gradients_of.run(names, {"x": x[share], "t": t[share]} | parameters)
        averaged = {name: average(g) for name, g in zip(names, found, strict=True)}
        clipped = clip.run([f"{name}.clipped" for name in names], averaged)
        for name, gradient in zip(PARAMETERS, clipped, strict=True):
            parameters[name] = parameters[name] - LEARNING_RATE * gradient

    if rank == 0:
        np.savez(result, **parameters)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
