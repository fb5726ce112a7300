"""Record the thresholds of adaptive clips, step by step, from the code that others published.

Needs torch==2.13.0, smartclip==0.1.1, pytorch-ignite==0.5.3 and numpy; `zclip` from
https://github.com/bluorion-com/ZClip at 584ce4f5a4aa; and on PYTHONPATH `autoclip.py` of
https://github.com/pseeth/autoclip at dfb622c3caca. Writes `adapting.json` beside itself.

One parameter has the recorded norm as its gradient in each step, in float64, so that what is
recorded is the statistics and not the norm.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any
from unittest import mock

import autoclip
import numpy as np
import smartclip
import torch
from ignite.engine import Engine
from zclip import ZClip


def norms() -> list[float]:
    """Return norms that fall, jump by 10 to 10,000 times, and are zero once."""
    steps = np.arange(160)
    random = np.random.default_rng(5)
    made = (0.2 + 3 * np.exp(-steps / 40)) * np.exp(0.3 * random.normal(size=len(steps)))
    made[[50, 90, 120]] *= (10, 10_000, 100)
    made[70] = 0
    return [float(f"{norm:.6g}") for norm in made]


def model() -> torch.nn.Module:
    made = torch.nn.Linear(1, 1, bias=False)
    return made.double()


def with_norm(net: torch.nn.Module, norm: float) -> torch.nn.Module:
    (parameter,) = net.parameters()
    parameter.grad = torch.tensor([[norm]], dtype=torch.float64)
    return net


def published_autoclip(percentile: float) -> list[float]:
    net, engine = model(), Engine(lambda *_: None)
    engine.register_events(*autoclip.BackwardsEvents)
    autoclip.add_autoclip_gradient_handler(engine, net, percentile)
    with mock.patch("torch.nn.utils.clip_grad_norm_") as clip:
        for norm in norms():
            with_norm(net, norm)
            engine.fire_event(autoclip.BackwardsEvents.BACKWARDS_COMPLETED)
    return [float(call.args[1]) for call in clip.call_args_list]


def published_zclip(**settings: Any) -> list[float | None]:
    """Return the norm behind the clip of each step; None while it warms up."""
    clip, net, gives = ZClip(max_grad_norm=None, **settings), model(), []
    for norm in norms():
        ready = clip.initialized
        with mock.patch.object(clip, "_apply_clipping", wraps=clip._apply_clipping) as apply:
            clip.step(with_norm(net, norm))
        value = apply.call_args.args[1] if ready else None
        gives.append(norm if ready and value is None else value)
    return gives


def of_smartclip(clip: Any) -> dict[str, list[float]]:
    net, seen = model(), []
    for norm in norms():
        smartclip.apply(with_norm(net, norm), clip, on_metrics=seen.append)
    return {key: [each[key] for each in seen] for key in ("threshold", "scale")}


def main() -> None:
    gates = {"warmup_steps": 0, "min_history": 0}
    window = {"mode": "percentile", "history": "window"}
    recorded = {
        "made by": Path(__file__).name,
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "smartclip", "numpy")
        },
        "norms": norms(),
        "autoclip, percentile 10": published_autoclip(10),
        "zclip": published_zclip(),
        "zclip, z_thresh 2, alpha 0.9, warmup_steps 10": published_zclip(
            z_thresh=2.0, alpha=0.9, warmup_steps=10
        ),
        "smartclip AutoClip": of_smartclip(smartclip.AutoClip()),
        "smartclip AutoClip, window of 40, percentile 10": of_smartclip(
            smartclip.AutoClip(percentile=10.0, window_size=40, **window, **gates)
        ),
        "smartclip AutoClip, ema, percentile 10": of_smartclip(
            smartclip.AutoClip(mode="percentile", percentile=10.0, **gates)
        ),
        "smartclip ZScoreClip": of_smartclip(smartclip.ZScoreClip(**gates)),
    }
    text = json.dumps(recorded, indent=None, separators=(",", ":")).replace('],"', '],\n"')
    Path(__file__).with_suffix(".json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
