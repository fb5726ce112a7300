"""Every node that a clip emits has a kernel, or the report says which has none.

`onnx_clip_pass/kernels.tsv` says what ONNX Runtime has. That forms run on its CPU provider
is tried here, in `test_edges.py` and in `test_on_cuda.py`.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from single import DTYPES, NEWEST_OPSET, by_apply, by_graph, single

from onnx_clip_pass import GradientClipByNorm, OnnxClipError
from onnx_clip_pass.kernels import Need, missing
from onnx_clip_pass.rewrite import clip_in_place

OPSETS = range(7, NEWEST_OPSET + 1)
FLOATS = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16", 9: "bool"}
SHAPES: dict[str, Any] = {
    "one": (1,),
    "rank 0": (),
    "short": (3, 4),
    "rows": (64, 512),
    "rows at the back": (64, 64, 3, 3),
    "no rows": (8209,),
    "axes of size 1": (64, 512, 1, 1),
    "rows and an axis of size 1": (8192, 8192, 1),
    "dimension unknown": ("N", 768),
    "rank unknown": None,
}
FORMS = list(itertools.product(["plain", "auto", "wide"], ["propagate", "zero", "keep"]))


def side_by_side(dtype: str, opset: int) -> onnx.ModelProto:
    """A graph with a gradient of each shape: the first is g0."""
    whole = single(dtype, (), opset)
    del whole.graph.node[:], whole.graph.input[:], whole.graph.output[:]
    for number, shape in enumerate(SHAPES.values()):
        one = single(dtype, shape, opset).graph
        one.node[0].input[:], one.node[0].output[:] = [f"x{number}"], [f"g{number}"]
        one.input[0].name, one.output[0].name = f"x{number}", f"g{number}"
        whole.graph.MergeFrom(onnx.GraphProto(node=one.node, input=one.input, output=one.output))
    return whole


def emitted(model: onnx.ModelProto) -> dict[str, list[Need]]:
    """The kernels that the nodes added for each gradient need, read as a runtime would."""
    opset = model.opset_import[0].version
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.value_info}
    types |= {v.name: v.type.tensor_type.elem_type for v in [*inferred.input, *inferred.output]}
    types |= {t.name: t.data_type for t in inferred.initializer}
    needs: dict[str, list[Need]] = {}
    for node in inferred.node:
        if not node.name.startswith("clip/"):
            continue
        taken = types[node.input[1 if node.op_type == "Where" else 0]]
        given = types[node.output[0]]
        kinds = [taken] if taken == given else [taken, given]
        need = Need(node.op_type, opset, tuple(FLOATS[kind] for kind in kinds))
        needs.setdefault(node.name.split("/")[1], []).append(need)
    return needs


@pytest.mark.parametrize("clip_norm", [1.0, 1e300])
@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_node_of_every_form_has_a_kernel_or_is_named(dtype: str, opset: int, clip_norm: float):
    for norm_precision, nonfinite in FORMS:
        form = norm_precision, nonfinite
        model = side_by_side(dtype, opset)
        names = [value.name for value in model.graph.output]
        settings = {"norm_precision": norm_precision, "nonfinite": nonfinite}
        clip = GradientClipByNorm(clip_norm)
        in_float64 = dtype == "float64" or norm_precision == "wide" or clip_norm > 1e38
        too_old = (dtype == "bfloat16" and opset < 13) or (opset < 8 and in_float64)
        if too_old or (opset < 9 and nonfinite != "propagate"):
            with pytest.raises(OnnxClipError, match="needs opset") as refused:
                clip_in_place(model, clip, gradients=names, **settings)
            assert len(refused.value.faults) == len(names), form
            continue
        report = clip_in_place(model, clip, gradients=names, **settings)
        needs = emitted(model)
        assert list(needs) == names, form
        warned = [warning for warning in report.warnings if "CUDA provider has no" in warning]
        said = any("CPU provider has no" in warning for warning in report.warnings)
        lacking = {name: missing("CUDA", each) for name, each in needs.items()}
        on_cpu = {name: missing("CPU", each) for name, each in needs.items()}
        assert len(warned) == any(lacking.values()), form
        assert said == any(on_cpu.values()), form
        for need in itertools.chain(*on_cpu.values()):
            assert need.op_type == "Cast", form
            assert opset >= 28, form  # which revised it
        for need in itertools.chain(*lacking.values()):
            words = f"{need.op_type} ({' to '.join(need.dtypes)}, opset {need.opset})"
            assert words in warned[0], form
            assert need.op_type in ("Cast", "Reshape"), form  # nothing else may lack a kernel
            assert opset >= 24, form
        is_ordinary = norm_precision != "wide" and nonfinite == "propagate" and clip_norm == 1.0
        for name, shape in zip(names, SHAPES.values(), strict=True):
            is_known = norm_precision == "plain" or (shape is not None and shape != ("N", 768))
            if dtype == "float64" and norm_precision == "plain":
                assert not lacking[name], (form, shape)
            is_cut = shape in (SHAPES["no rows"], SHAPES["rows and an axis of size 1"])
            if dtype == "float32" and is_ordinary and is_known and not is_cut:
                assert not lacking[name], (form, shape)


@pytest.mark.parametrize("opset", OPSETS)
def test_cuda_has_every_cast_until_opset_23_and_none_from_24(opset: int):
    casts = [("float16", "float32"), ("bfloat16", "float32"), ("float32", "float64")]
    needs = [Need("Cast", opset, pair) for pair in casts if opset >= 13 or "bfloat16" not in pair]
    assert missing("CUDA", needs) == (sorted(needs) if opset >= 24 else [])


@pytest.mark.parametrize("opset", range(9, 24))
def test_what_is_laid_out_for_a_machine_has_kernels_on_both_providers(opset: int):
    for layout in ("cpu", "x86-64", "cuda"):
        model = single("float32", (768, 768), opset)
        clip = GradientClipByNorm(1.0)
        report = clip_in_place(model, clip, gradients=["g"], layout=layout)  # type: ignore[arg-type]
        assert report.warnings == (), layout
        (needs,) = emitted(model).values()
        assert missing("CPU", needs) == missing("CUDA", needs) == [], layout


def test_a_warning_says_which_release_has_what_is_lacking():
    """Of opset 28 nobody knows: no release of onnxruntime-gpu loads it yet."""
    for opset, says in ((24, True), (26, True), (28, False)):
        model = single("float16", (3, 4), opset)
        report = clip_in_place(model, GradientClipByNorm(1.0), gradients=["g"])
        (warning,) = [each for each in report.warnings if "CUDA provider has no" in each]
        assert ("before release 1.27: such nodes" in warning) is says


# -- the table, looked up by hand --------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "need", "is_there"),
    [
        # CPU  Min  [6, 7]  float;  [8, 11]  float, double
        ("CPU", Need("Min", 7, ("float32",)), True),
        ("CPU", Need("Min", 7, ("float64",)), False),
        ("CPU", Need("Min", 8, ("float64",)), True),
        # CPU  Mul  [7, 12]  float, double: no half precision
        ("CPU", Need("Mul", 12, ("float16",)), False),
        ("CPU", Need("Mul", 17, ("float32",)), True),
        # CUDA  ReduceL2  18+  float, float16, double: no bfloat16; 18 is its last revision
        ("CUDA", Need("ReduceL2", 21, ("bfloat16",)), False),
        ("CUDA", Need("ReduceL2", 21, ("float64",)), True),
        # CUDA  Cast  23+, which no longer matches when the operator is revised at 24
        ("CUDA", Need("Cast", 23, ("bfloat16", "float32")), True),
        ("CUDA", Need("Cast", 24, ("bfloat16", "float32")), False),
        ("CUDA", Need("Cast", 12, ("bfloat16", "float32")), False),
        ("CUDA", Need("Cast", 12, ("float16", "float32")), True),
        # CPU  Cast  24  and  25+
        ("CPU", Need("Cast", 24, ("float16", "float32")), True),
        ("CPU", Need("Cast", 25, ("float16", "float32")), True),
        # CUDA  Reshape  23+, likewise
        ("CUDA", Need("Reshape", 23, ("float32",)), True),
        ("CUDA", Need("Reshape", 24, ("float32",)), False),
        # CPU  Where  [9, 15]
        ("CPU", Need("Where", 9, ("float32",)), True),
        ("CPU", Need("Where", 8, ("float32",)), False),
        ("CPU", Need("NoSuchOperator", 17, ("float32",)), False),
    ],
    ids=lambda value: f"{value.op_type} {value.opset}" if isinstance(value, Need) else str(value),
)
def test_the_table_is_read_as_it_is_written(provider: Any, need: Need, is_there: bool):
    assert missing(provider, [need]) == ([] if is_there else [need])


def test_missing_names_each_need_once_and_in_order():
    a, b = Need("Where", 8, ("float32",)), Need("Mul", 12, ("float16",))
    assert missing("CPU", [a, b, a]) == [b, a]


# -- running ------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [7, 13, 18, NEWEST_OPSET])
def test_the_same_forms_run_on_the_cpu(opset: int):
    for norm_precision, shape in itertools.product(["plain", "auto"], [(1,), (64, 512), (8209,)]):
        x = np.full(shape, -3, np.float32)
        out = by_graph(GradientClipByNorm(1.0), x, norm_precision=norm_precision, opset=opset)
        np.testing.assert_allclose(out, by_apply(GradientClipByNorm(1.0), x), rtol=1e-4)
