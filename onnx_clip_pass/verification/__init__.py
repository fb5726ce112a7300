"""Run a rewritten model beside its original and hold it to the formula.

1. Inputs, outputs and weights of the two models are compared as they are declared, and every read
   of a clipped gradient: it must see the clipped value, or in the backward pass the raw one.
2. The original is run twice; what differs between the two runs is not compared bit by bit.
3. Every clipped gradient is taken out of the rewritten model before and after its clips, in nested
   graphs too, and compared with their formulas in float64, those of a group together; measures
   that are graph outputs are compared with what the formulas measure.
4. The original is run with these clipped gradients in the places that must see them, and raw ones
   everywhere else. All raw gradients and outputs of the rewritten model must agree with that, and
   bit for bit with the original where no clipped gradient leads.
5. Where the feeds do not show a clip both acting, on either side if it bounds elements, and letting
   pass, 3 and 4 are repeated with the gradients scaled, in both models alike, so that they do;
   where thresholds are inputs, with half of each.
6. The clips are tried without the rest of the model, on gradients made for it (`stresses`), and
   branches that no run took are read (`branches`).
7. Where the original has a loss, its slopes along the recorded gradients tell whether they are
   gradients at all (`meaning`).

Nothing is optimized by ONNX Runtime meanwhile: a fusion that a clip happens to prevent would round
differently.
"""

from __future__ import annotations

from onnx_clip_pass.verification.both import verify
from onnx_clip_pass.verification.report import GradientCheck, OutputCheck, Verification
from onnx_clip_pass.verification.slopes.meaning import Slopes

__all__ = ["GradientCheck", "OutputCheck", "Slopes", "Verification", "verify"]
