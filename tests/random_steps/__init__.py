"""A generator of random training steps: nets, optimizers and what surrounds them, with the truth.

`random_step(seed)` makes one; `score` says how well a list of pairs fits it.
`python -m tests.random_steps 300` tries `find_gradients` on 300; `--seed 17` shows a single one.
"""

from .scoring import Score, faults, score
from .steps import Check, Step, random_step

__all__ = ["Check", "Score", "Step", "faults", "random_step", "score"]
