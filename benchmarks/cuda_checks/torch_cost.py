"""The time in which PyTorch clips gradients, as JSON: python torch_cost.py DEVICE SET TURNS."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from gradient_sets import SETS, arrays_of
from harness import Values, by_turns


def seconds(device: str, name: str, turns: int) -> Values:
    """Seconds in which PyTorch clips the gradients of a net in place, turn by turn."""
    import torch

    parameters = []
    for array in arrays_of(SETS[name]()):
        parameters.append(torch.nn.Parameter(torch.zeros(array.shape, device=device)))
        parameters[-1].grad = torch.from_numpy(array).to(device)
    grads = [parameter.grad for parameter in parameters]
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def together() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        wait()

    def each() -> None:
        norms = torch.stack(torch._foreach_norm(grads))
        torch._foreach_mul_(grads, list(torch.clamp(1.0 / norms, max=1.0).unbind()))
        wait()

    with torch.no_grad():
        return by_turns(
            {
                f"PyTorch {torch.__version__}, clip_grad_norm_ (global norm), foreach": together,
                "PyTorch, each by its own norm, _foreach_norm and _foreach_mul_": each,
            },
            turns,
        )


if __name__ == "__main__":
    print(json.dumps(seconds(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
