"""Sharded training: clip gradients of which every worker has but a part by the norm of all.

    torchrun --standalone --nproc-per-node 4 train.py norms.onnx scale.onnx result.npz --mesh 2x2

The mesh is of workers that shard parameters (FSDP2) by workers that split layers (tensor
parallel). Each takes its parts of all gradients to what is added up (`norms.onnx`), all add up, and
each scales its parts (`scale.onnx`).
"""

from __future__ import annotations

import argparse
import json
import math

import numpy as np
import onnxruntime as ort
import torch
import torch.distributed as dist
from net import Net, batches, optimizer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

REDUCED = {"clip/sums": dist.ReduceOp.SUM, "clip/maxima": dist.ReduceOp.MAX}


def open_phase(path: str) -> ort.InferenceSession:
    """Open a model; all workers must have been given the same."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["onnx_clip_pass.sharded"])
    prints: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(prints, about["fingerprint"])
    if len(set(prints)) > 1:
        raise SystemExit(f"{path} is not the same clip on all workers")
    return session


def run(session: ort.InferenceSession, fed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Feed a model what it takes; its outputs by name."""
    names = [port.name for port in session.get_outputs()]
    taken = {port.name: fed[port.name] for port in session.get_inputs()}
    return dict(zip(names, session.run(names, taken), strict=True))


def replicas(gradient: DTensor) -> int:
    """The number of workers that have the same part of a gradient."""
    sizes = zip(gradient.device_mesh.shape, gradient.placements, strict=True)
    return math.prod(size for size, placement in sizes if placement.is_replicate())


@torch.no_grad()
def clip(net: torch.nn.Module, norms: ort.InferenceSession, scale: ort.InferenceSession) -> None:
    """Clip the gradients of a sharded net in place."""
    gradients = {f"{name}.grad": p.grad for name, p in net.named_parameters()}
    parts = {name: gradient.to_local() for name, gradient in gradients.items()}
    fed = {name: part.numpy() for name, part in parts.items()}
    fed["clip/replicas"] = np.array([replicas(g) for g in gradients.values()], np.float64)
    for name, vector in run(norms, fed).items():
        reduced = torch.from_numpy(vector)
        dist.all_reduce(reduced, REDUCED[name])
        fed[name] = reduced.numpy()
    for name, clipped in run(scale, fed).items():
        parts[name.removesuffix(".clipped")].copy_(torch.from_numpy(clipped))


def main() -> None:
    """Train, and let the first worker write the parameters."""
    parser = argparse.ArgumentParser()
    for name in ("norms", "scale", "result"):
        parser.add_argument(name)
    parser.add_argument("--mesh", default="2x1", help="sharding workers x splitting workers")
    arguments = parser.parse_args()

    store, rank, workers = next(dist.rendezvous("env://"))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=workers)
    shape = tuple(int(size) for size in arguments.mesh.split("x"))
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("shards", "splits"))
    norms, scale = open_phase(arguments.norms), open_phase(arguments.scale)

    torch.manual_seed(0)  # the same parameters on all workers
    net = Net()
    if mesh["splits"].size() > 1:
        plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        net = parallelize_module(net, mesh["splits"], plan)
    net = fully_shard(net, mesh=mesh["shards"])
    optim = optimizer(net)
    own, count = mesh["shards"].get_local_rank(), mesh["shards"].size()
    for x, t in batches():
        share = slice(own * len(x) // count, (own + 1) * len(x) // count)
        loss = torch.nn.functional.mse_loss(net(x[share]), t[share])
        loss.backward()  # FSDP averages over the workers that shard
        clip(net, norms, scale)
        optim.step()
        optim.zero_grad()

    whole = {name: p.full_tensor().detach().numpy() for name, p in net.named_parameters()}
    if rank == 0:
        np.savez(arguments.result, **whole)
    # A worker that closes its connections while another still reads from them aborts that one: so
    # there is a barrier, which goes by none of these connections.
    store.set(f"worker {rank} is done", "")
    store.wait([f"worker {other} is done" for other in range(workers)])
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
