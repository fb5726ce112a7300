"""The example of sharded training: every mesh ends where one process does.

Runs in the session `pytorch`; with all meshes where ONNX_CLIP_NIGHTLY is set.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from onnx_clip_pass import GradientClipByGlobalNorm
from onnx_clip_pass.cli import main

if not os.environ.get("ONNX_CLIP_SHARDED"):
    pytest.skip("the session pytorch sets ONNX_CLIP_SHARDED", allow_module_level=True)
torch = pytest.importorskip("torch")

EXAMPLE = Path(__file__).parents[2] / "examples" / "sharded"
CLIP_NORM = 0.05
MESHES = ["2x1", "1x2", *(["4x1", "1x4", "2x2"] if os.environ.get("ONNX_CLIP_NIGHTLY") else [])]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def parameters(net: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in net.named_parameters()}


def alone(example: ModuleType, clip: GradientClipByGlobalNorm | None) -> dict[str, np.ndarray]:
    """Train in this process, on whole batches and whole gradients, by the formula."""
    torch.manual_seed(0)
    net = example.Net()
    optimizer = example.optimizer(net)
    for x, t in example.batches():
        torch.nn.functional.mse_loss(net(x), t).backward()
        gradients = {name: p.grad.numpy() for name, p in net.named_parameters()}
        clipped = gradients if clip is None else clip.apply(gradients)
        for name, p in net.named_parameters():
            p.grad = torch.from_numpy(clipped[name])
        optimizer.step()
        optimizer.zero_grad()
    return parameters(net)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    sys.path.insert(0, str(EXAMPLE))
    import net

    sys.path.remove(str(EXAMPLE))
    return net


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    command = [sys.executable, EXAMPLE / "make_model.py", folder]
    subprocess.run(command, check=True, env=ENVIRONMENT)
    model, names = str(folder / "gradients.onnx"), str(folder / "gradients.json")
    for phase in ("norms", "scale"):
        target = str(folder / f"{phase}.onnx")
        clip = ["--clip", "global-norm", "--clip-norm", str(CLIP_NORM), "--replicated", "*"]
        command = ["extract", model, "--map", names, "--phase", phase, "-o", target, *clip]
        assert main(command) == 0
    return folder


@pytest.fixture(scope="module")
def right(example: ModuleType) -> dict[str, np.ndarray]:
    return alone(example, GradientClipByGlobalNorm(CLIP_NORM))


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_of_workers_ends_where_one_process_does(
    mesh: str, folder: Path, right: dict[str, np.ndarray]
):
    """50 steps with sums in another order: a few float32 roundings of parameters below 1."""
    workers = str(np.prod([int(size) for size in mesh.split("x")]))
    result = folder / f"{mesh}.npz"
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone",
         "--nproc-per-node", workers, EXAMPLE / "train.py",
         folder / "norms.onnx", folder / "scale.onnx", result, "--mesh", mesh],
        check=True, timeout=300, env=ENVIRONMENT,
    )  # fmt: skip
    got = dict(np.load(result))
    assert got.keys() == right.keys()
    far = {name: float(np.abs(got[name] - right[name]).max()) for name in right}
    print(f"{mesh}: {max(far.values()):.1e}")  # for the table of the example's README
    assert max(far.values()) < 16 * 2.0**-24


def test_the_clip_acts_in_that_training(example: ModuleType, right: dict[str, np.ndarray]):
    unclipped = alone(example, None)
    assert max(np.abs(unclipped[name] - right[name]).max() for name in right) > 0.1
