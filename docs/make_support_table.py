"""Make the table of docs/numerics.md, which dtype is clipped at which opset, by running it.

    python docs/make_support_table.py            # prints it
    python docs/make_support_table.py --write    # puts it into docs/numerics.md

Every cell was clipped by ONNX Runtime's CPU provider and compared with `apply`; whether CUDA has
all kernels is what the report of the rewrite says.
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from marked import put  # noqa: E402
from single import DTYPES, NEWEST_OPSET, by_apply, by_graph, single  # noqa: E402

from onnx_clip_pass import GradientClipByNorm, OnnxClipError  # noqa: E402
from onnx_clip_pass.rewrite import clip_in_place  # noqa: E402

PAGE = ROOT / "docs" / "numerics.md"
MARK = "<!-- support table: made by docs/make_support_table.py -->"
FORMS = {
    "plain": ("plain", "propagate"),
    "auto": ("auto", "propagate"),
    "auto, zero or keep": ("auto", "zero"),
    "wide": ("wide", "propagate"),
}
SHAPE = (768, 768)


def cell(dtype: str, opset: int, norm_precision: str, nonfinite: str) -> str:
    """Refused, CPU, or CPU and CUDA."""
    clip, x = GradientClipByNorm(1.0), np.full(SHAPE, -3).astype(DTYPES[dtype])
    settings = {"norm_precision": norm_precision, "nonfinite": nonfinite}
    try:
        model = single(dtype, SHAPE, opset)
        report = clip_in_place(model, clip, gradients=["g"], **settings)
    except OnnxClipError:
        return "refused"
    out = by_graph(clip, x, opset=opset, **settings)
    np.testing.assert_allclose(out.astype(float), by_apply(clip, x).astype(float), rtol=1e-3)
    return "CPU" if any("CUDA provider" in said for said in report.warnings) else "CPU, CUDA"


def table() -> str:
    """The table as running gives it."""
    lines = ["| dtype | " + " | ".join(FORMS) + " |", "|---" * (1 + len(FORMS)) + "|"]
    for dtype in DTYPES:
        cells = []
        for form in FORMS.values():
            by_opset = [(opset, cell(dtype, opset, *form)) for opset in range(7, NEWEST_OPSET + 1)]
            runs = [(what, list(run)) for what, run in groupby(by_opset, lambda pair: pair[1])]
            said = [f"{what} {_span([opset for opset, _ in run])}" for what, run in runs]
            cells.append("; ".join(said))
        lines.append(f"| {dtype} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _span(opsets: list[int]) -> str:
    return str(opsets[0]) if len(opsets) == 1 else f"{opsets[0]}-{opsets[-1]}"


if __name__ == "__main__":
    made = table()
    print(made)
    if "--write" in sys.argv[1:]:
        put(PAGE, MARK, made)
