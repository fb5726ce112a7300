"""The checks that a machine with a GPU runs, here with the CPU provider in the place of CUDA's.

What they would say of a GPU that is not as it should be is asked of made-up profiles and numbers.
"""

from __future__ import annotations

import ctypes
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the checks run models")
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import on_cuda
from cuda_checks import cost, forms, precision, stand_in, subjects, using
from cuda_checks.outcome import OutOfTimeError, Row, TimeLimit, exit_code, table
from cuda_checks.sessions import CPU, CUDA, Placement

from onnx_clip_pass import OnnxClipError, Report

LONG = TimeLimit(math.inf)


def event(node: str, op_type: str, provider: str = CUDA.name) -> dict[str, Any]:
    return {"name": f"{node}_kernel_time", "args": {"op_name": op_type, "provider": provider}}


# -- where nodes ran -----------------------------------------------------------------------------


def test_a_placement_tells_nodes_elsewhere_nodes_unseen_and_copies():
    events = [
        {"name": "session_initialization", "args": {}},
        {"name": "clip/g/Mul_fence_before", "args": {"op_name": "Mul"}},
        event("clip/g/ReduceL2", "ReduceL2"),
        event("clip/g/ReduceL2", "ReduceL2"),  # a second run
        event("clip/g/Cast", "Cast", CPU.name),
        event("Memcpy", "MemcpyFromHost"),
        event("backward", "Gemm", CPU.name),  # nobody asked about it
    ]
    nodes = ["clip/g/ReduceL2", "clip/g/Cast", "clip/g/Mul"]
    assert Placement.of(events, nodes, CUDA.name) == Placement(
        {"Cast": ("clip/g/Cast",)}, ("clip/g/Mul",), 1
    )


LACKING = Report(
    (), ("ONNX Runtime's CUDA provider has no kernel for Cast (float16 to float32, opset 24): x",)
)


def test_what_the_report_warns_of_may_run_elsewhere_and_be_copied_and_nothing_else():
    cast = {"Cast": ("clip/g/Cast",)}
    assert forms.misplaced(Placement(cast, (), 2), LACKING, CUDA) == []
    more = Placement(cast | {"Mul": ("clip/g/Mul#2",)}, (), 2)
    assert forms.misplaced(more, LACKING, CUDA) == ["Mul runs elsewhere, as 'clip/g/Mul#2'"]


def test_what_runs_elsewhere_unannounced_is_a_fault_and_so_are_copies():
    elsewhere = Placement({"Cast": ("clip/g/Cast",)}, (), 2)
    assert forms.misplaced(elsewhere, Report(()), CUDA) == [
        "Cast runs elsewhere, as 'clip/g/Cast'",
        "2 copies between devices",
    ]


def test_a_node_that_nobody_ran_is_a_fault_but_for_casts_that_are_taken_out():
    unseen = Placement(unseen=("clip/g/Mul#2", "clip/g/Cast#3"))
    assert forms.misplaced(unseen, Report(()), CUDA) == ["'clip/g/Mul#2' did not run"]


# -- every form ----------------------------------------------------------------------------------

ALL = subjects.all_subjects()
SOME = tuple(
    subject
    for subject in ALL
    if subject.dtype in ("bfloat16", "float32")
    and not subject.name.endswith(("rows that are cut", "no rows", "axes of size 1"))
)


def test_the_subjects_have_names_of_their_own_and_every_dtype():
    assert len({subject.name for subject in ALL}) == len(ALL) > 100
    assert {subject.dtype for subject in ALL} == set(subjects.DTYPES)


def test_only_what_needs_a_newer_opset_is_left_out():
    assert subjects.clipped_model(ALL, 17)[2] == ALL
    held = subjects.clipped_model(ALL, 12)[2]
    left = [subject for subject in ALL if subject not in held]
    assert {subject.dtype for subject in left} == {"bfloat16"}
    with pytest.raises(OnnxClipError, match="norm_precision must be one of"):
        subjects.clipped_model(ALL, 17, norm_precision="exact")


def test_each_gradient_that_is_to_be_clipped_is_and_each_that_is_to_pass_does():
    """Else the checks would prove nothing: by the formulas alone, of which nothing runs."""
    acting = forms.expected(ALL, "acting", "propagate")
    passing = forms.expected(ALL, "passing", "propagate")
    for subject in ALL:
        assert acting[subject.name].tobytes() != subject.acting().tobytes(), subject.name
        assert passing[subject.name].tobytes() == subject.passing().tobytes(), subject.name


@pytest.mark.parametrize("opset", [7, 17, 24], ids="opset_{}".format)
def test_the_forms_are_right_on_the_cpu(opset: int):
    kinds = [forms.Configuration(), forms.Configuration("cuda", "auto", "zero")]
    rows = list(forms.check_forms(CPU, LONG, opsets=[opset], configurations=kinds, subjects=SOME))
    assert [(row.what, row.verdict) for row in rows] == [
        ("cpu, auto, propagate", "ok"),
        ("cuda, auto, zero", "ok"),
        ("RMS where nobody knows the shape", "ok"),
    ], rows


def test_a_number_a_shape_and_a_nan_that_are_wrong_are_told():
    one = tuple(s for s in ALL if s.name in ("float32 short", "float16 one", "float32 rank 0"))
    wanted = forms.expected(one, "acting", "propagate")
    out = {name: array.copy() for name, array in wanted.items()}
    assert forms.wrong(one, out, wanted) == []
    out["float32 short"][1, 2] *= 1 + 3e-5  # the bound is 1e-5
    out["float32 rank 0"] = out["float32 rank 0"].reshape(1)
    out["float16 one"][0] = np.nan
    found = forms.wrong(one, out, wanted)
    assert [fault.partition(":")[0] for fault in found] == [
        "float16 one", "float32 rank 0", "float32 short",
    ]  # fmt: skip
    assert "nan, expected 1" in found[0]
    assert "shape (1,), expected ()" in found[1]


def test_a_gradient_within_its_limit_that_is_changed_is_told(monkeypatch: pytest.MonkeyPatch):
    ran = forms.run_profiled

    def changed(*args: Any) -> Any:
        (acting, passing, broken), placement = ran(*args)
        passing["float32 short"] = np.abs(passing["float32 short"])  # -0.0 loses its sign
        return [acting, passing, broken], placement

    monkeypatch.setattr(forms, "run_profiled", changed)
    one = tuple(subject for subject in ALL if subject.name == "float32 short")
    kinds = [forms.Configuration()]
    row = next(forms.check_forms(CPU, LONG, opsets=[17], configurations=kinds, subjects=one))
    assert (row.verdict, row.said) == (
        "fault",
        "opset 17: float32 short: is within its limit and is changed",
    )


def test_of_a_device_that_computes_nothing_only_places_are_asked(monkeypatch: pytest.MonkeyPatch):
    ran = forms.run_profiled

    def nothing(*args: Any) -> Any:
        outputs, placement = ran(*args)
        return [{name: 0 * array for name, array in each.items()} for each in outputs], placement

    monkeypatch.setattr(forms, "run_profiled", nothing)
    one = tuple(subject for subject in ALL if subject.name == "float32 short")
    kinds = [forms.Configuration()]
    for computes, verdict in ((True, "fault"), (False, "ok")):
        found = forms.check_forms(
            CPU, LONG, opsets=[17], configurations=kinds, subjects=one, computes=computes
        )
        assert next(found).verdict == verdict


# -- libraries in the place of CUDA's ------------------------------------------------------------

USER = """
#include <stddef.h>
int cudaMalloc(void **place, size_t size);
int cudaGetDeviceCount(int *number);
int cublasCreate_v2(void **handle);
int cudnnNothing(void);
const char *name = "cudnnByName";
int counted(void) {
    void *place = 0, *handle = 0;
    int number = 0;
    cudaMalloc(&place, 100);
    cublasCreate_v2(&handle);
    cudaGetDeviceCount(&number);
    return (place != 0) + (handle != 0) + number + cudnnNothing();
}
"""


def test_stand_ins_are_found_by_what_asks_for_cuda_and_do_what_little_they_must(tmp_path: Path):
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    (tmp_path / "user.c").write_text(USER)
    empty = tmp_path / "libcudart.so.13"
    for target, source, more in (
        (empty, "/dev/null", ["-x", "c", f"-Wl,-soname,{empty.name}"]),
        (tmp_path / "user.so", str(tmp_path / "user.c"), ["-Wl,--no-as-needed", str(empty)]),
    ):
        options = more[:2] if "-x" in more else []
        command = ["cc", "-shared", "-fPIC", "-o", str(target), *options, source]
        subprocess.run([*command, *more[len(options) :]], check=True)
    folder = tmp_path / "stand-ins"
    folder.mkdir()
    stand_in.build(tmp_path / "user.so", folder)
    assert {path.name for path in folder.glob("*.so*")} >= {"libcudart.so.13", "libcudnn.so.9"}
    told = subprocess.run(
        [sys.executable, "-c", "import ctypes; print(ctypes.CDLL('./user.so').counted())"],
        cwd=tmp_path, env={"LD_LIBRARY_PATH": str(folder)}, check=True, capture_output=True,
    )  # fmt: skip
    assert told.stdout.split() == [b"3"]  # memory, a handle, one device
    assert ctypes.CDLL(str(folder / "libcudnn.so.9")).cudnnByName() == 0


def test_without_a_gpu_the_script_runs_again_where_it_finds_them(
    monkeypatch: pytest.MonkeyPatch,
):
    ran: list[Any] = []

    class Done:
        returncode = 7

    def run(command: list[str], env: dict[str, str]) -> Done:
        ran.append((command[2:], env["LD_LIBRARY_PATH"].split(":")[0], Path(command[1]).name))
        return Done()

    built: list[Path] = []
    monkeypatch.setattr(on_cuda, "build", lambda provider, folder: built.append(folder))
    monkeypatch.setattr(on_cuda.subprocess, "run", run)
    assert on_cuda.main(["--without-gpu", "--minutes", "3"]) == 7
    assert ran == [(["--without-gpu", "--minutes", "3"], str(built[0]), "on_cuda.py")]


# -- the other parts -----------------------------------------------------------------------------


def test_norms_are_within_their_bounds_on_the_cpu():
    rows = list(precision.check_precision(CPU, LONG, side=256))
    assert [row.verdict for row in rows] == ["ok", "ok", "ok", "ok", "note"]


def test_a_norm_beyond_its_bound_is_a_fault(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision, "_BOUND", 1e-12)
    row = next(precision.check_precision(CPU, LONG, side=256))
    assert row.verdict == "fault"
    assert "expected 1.0e-12 at most" in row.said


def test_a_way_that_nothing_is_claimed_of_may_fail_and_another_may_not(
    monkeypatch: pytest.MonkeyPatch,
):
    def broken(way: Any, *_: Any) -> Any:
        if way.bound is None or way.name == "wide":
            raise RuntimeError("no such kernel\nat all")
        return {"normal": 0.0}, 1.0

    monkeypatch.setattr(precision, "_measured", broken)
    found = precision.check_precision(CPU, LONG, side=16)
    assert [next(found).verdict for _ in range(3)] == ["ok", "ok", "ok"]
    with pytest.raises(RuntimeError, match="no such kernel"):
        next(found)
    monkeypatch.setattr(precision, "_ways", lambda *_: [precision.Way("Scan", None, None)])
    (row,) = precision.check_precision(CPU, LONG, side=16)
    assert (row.verdict, row.said) == ("note", "does not run: no such kernel")


def test_on_cuda_products_are_tried_with_tensorfloat_32_and_without():
    ways = {way.name: way for way in precision._ways(CUDA, 64)}
    exact = ways["layout x86-64: MatMul, use_tf32=0"]
    rounded = ways["layout x86-64: MatMul, use_tf32=1"]
    assert dict(exact.options) == {"use_tf32": "0"}
    assert dict(rounded.options) == {"use_tf32": "1"}
    assert (exact.bound, rounded.bound) == (1e-5, None)
    assert ways["layout cuda: ReduceL2"].bound == 1e-5  # there, not on a CPU


def test_bound_arrays_stay_on_the_device():
    (row,) = using.check_binding(CPU, LONG)
    assert row.verdict == "ok", row


def test_a_net_that_does_not_learn_is_a_fault(monkeypatch: pytest.MonkeyPatch):
    class Run:
        accuracy = 0.1
        losses = (2.3, 2.3)

    class Digits:
        @staticmethod
        def train(*_: Any) -> Run:
            return Run()

    monkeypatch.setattr(using, "_digits", Digits)
    (row,) = using.check_training(CPU, LONG)
    assert row.verdict == "fault"
    assert "accuracy 10.0%" in row.said


def test_the_example_is_not_run_where_its_packages_are_missing(monkeypatch: pytest.MonkeyPatch):
    def missing() -> None:
        raise ImportError("no", name="onnx_ad")

    monkeypatch.setattr(using, "_digits", missing)
    (row,) = using.check_training(CPU, LONG)
    assert (row.verdict, row.said) == ("not run", "onnx_ad is not installed")


def test_costs_are_told_for_each_clip_and_where_pytorch_is_missing(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(cost.importlib.util, "find_spec", lambda _: None)
    rows = list(cost.check_cost(CPU, LONG, name="on-device net", turns=2))
    assert [row.verdict for row in rows] == ["note"] * 5 + ["not run"]
    assert all(" ms (" in row.said for row in rows[:-1])


# -- the whole -----------------------------------------------------------------------------------


def _parts(*checks: Any) -> dict[str, tuple[Any, ...]]:
    return {"forms": checks}


def good(*_: Any) -> Iterator[Row]:
    yield Row("forms", "all of them", "ok", "3 gradients")


def late(*_: Any) -> Iterator[Row]:
    raise OutOfTimeError
    yield


def broken(*_: Any) -> Iterator[Row]:
    raise RuntimeError("CUDA error 2:\nout of memory")
    yield


@pytest.mark.parametrize(
    ("checks", "code", "said"),
    [
        ((good,), 0, "1 ok, 0 fault, 0 note, 0 not run"),
        ((good, late), 1, "the time was over before it was done"),
        ((broken, good), 1, "RuntimeError: CUDA error 2: out of memory"),
    ],
    ids=["all is right", "out of time", "one part breaks and the others run"],
)
def test_the_exit_code_is_1_if_there_is_a_fault(
    checks: tuple[Any, ...],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(on_cuda, "PARTS", _parts(*checks))
    kept = tmp_path / "found.json"
    assert on_cuda.main(["--provider", "cpu", "--json", str(kept)]) == code
    printed = capsys.readouterr().out
    assert said in printed
    assert "3 gradients" in printed
    assert len(json.loads(kept.read_text())["rows"]) == len(checks)


def test_without_a_gpu_nothing_is_proven(capsys: pytest.CaptureFixture[str]):
    if CUDA.is_there:
        pytest.skip("there is CUDA here: python benchmarks/on_cuda.py")
    assert on_cuda.main([]) == 1
    assert "has no CUDAExecutionProvider" in capsys.readouterr().err


def test_what_is_not_run_is_no_fault_and_is_counted():
    rows = [Row("cost", "PyTorch", "not run", "PyTorch is not installed"), *good()]
    assert exit_code(rows) == 0
    assert table(rows).splitlines()[-1] == "1 ok, 0 fault, 0 note, 1 not run"


def test_a_limit_that_is_over_is_told():
    with pytest.raises(OutOfTimeError):
        TimeLimit(-1).check()
