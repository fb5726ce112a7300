"""A clip is described once: CONTRIBUTING's recipe, with settings that no other clip has."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import run
from single import single

from onnx_clip_pass import GradientClipByNorm, OnnxClipError, clip_gradients, load_rules, strip
from onnx_clip_pass.clips import CLIPS, Case, Formula, setting_names
from onnx_clip_pass.clips.settings import LIMIT, Number, setting
from onnx_clip_pass.files import FileOptions
from onnx_clip_pass.options import described
from onnx_clip_pass.record import read_record
from onnx_clip_pass.record.entries import ClipEntry
from onnx_clip_pass.rewrite import Options
from onnx_clip_pass.selection import NeedClip
from onnx_clip_pass.verification import verify

SEED = Path(__file__).parents[2] / "models" / "seed" / "train_step.onnx"


class ClipByCeiling(Formula):
    """Limit the norm of each gradient, of order `steepness`, to `ceiling`."""

    summary = "each gradient by a norm that it names itself"

    ceiling: float = setting(LIMIT, "the largest norm.", is_limit=True)
    steepness: float = setting(Number(), "the order.", default=2.0)
    need_clip: NeedClip = None

    @property
    def _inner(self) -> GradientClipByNorm:
        return GradientClipByNorm(self.ceiling, ord=self.steepness)

    @property
    def order(self) -> float:
        return self.steepness

    @property
    def label(self) -> str:
        return f"norm under a ceiling of {self.ceiling:g}"

    @property
    def bounds(self) -> str:
        return "each gradient by a ceiling"

    def reference(self, cases: Sequence[Case], nonfinite: Any = "propagate") -> Any:
        return self._inner.reference(cases, nonfinite)

    def norms(self, case: Case) -> Any:
        return self._inner.norms(case)

    def fault(self, gradient: Any, opset: int, numerics: Any) -> str | None:
        return self._inner.fault(gradient, opset, numerics)

    def emit(self, members: Any) -> Any:
        return self._inner.emit(members)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLIPS, "ceiling", ClipByCeiling)


def test_constructor_repr_and_scaling_follow_from_the_fields():
    clip = ClipByCeiling(2, steepness=1, need_clip="*.bias")
    assert repr(clip) == "ClipByCeiling(ceiling=2.0, steepness=1.0, need_clip='*.bias')"
    assert repr(clip.scaled(4)) == "ClipByCeiling(ceiling=8.0, steepness=1.0, need_clip='*.bias')"
    assert clip.threshold == clip.with_threshold(2.0).threshold == 2.0
    assert ClipByCeiling(float("inf")).is_identity
    with pytest.raises(OnnxClipError, match=r"ceiling must be a positive number, or inf .* not 0"):
        ClipByCeiling(0)
    with pytest.raises(AttributeError):
        clip.ceiling = 3.0  # type: ignore[misc]  # frozen


def test_a_rewrite_clips_by_it_and_records_it():
    model = single("float32", [2])
    clipped = clip_gradients(model, ClipByCeiling(1, steepness=1), gradients=["g"])
    np.testing.assert_array_equal(run(clipped, {"x": np.float32([3, -1])})["g"], [0.75, -0.25])
    entry = read_record(clipped).clips[0].clip
    assert (entry["clip"], entry["ceiling"], entry["steepness"]) == ("ClipByCeiling", 1.0, 1.0)
    assert strip(clipped) == model


def test_a_field_without_a_description_is_refused():
    class Undescribed(ClipByCeiling):
        floor: float = 1.0

    with pytest.raises(TypeError, match=r"Undescribed: describe floor by setting"):
        Undescribed(1.0)


def test_no_setting_is_called_like_an_option_or_like_what_a_record_says_beside_it():
    beside = {
        "clip",
        "need_clip",
        *described(Options),
        *described(FileOptions),
        *ClipEntry.__slots__,
    }
    assert not beside.intersection(setting_names())


def test_settings_of_one_name_are_of_one_type():
    """They share an option of the command line."""
    for name in setting_names():
        settings = [clip.described().get(name) for clip in CLIPS.values()]
        assert len({type(setting.type) for setting in settings if setting is not None}) == 1, name


def rules_in(folder: Path, *lines: str) -> Path:
    path = folder / "clip.toml"
    path.write_text("\n".join(["[[rule]]", 'clip = "ceiling"', *lines]), encoding="utf-8")
    return path


def test_a_file_of_rules_knows_it(tmp_path: Path):
    (rule,) = load_rules(rules_in(tmp_path, "ceiling = 3", 'steepness = "inf"'))
    assert repr(rule.clip) == "ClipByCeiling(ceiling=3.0, steepness=inf)"
    for line, words in {
        "steepness = 2": 'clip = "ceiling" needs ceiling',
        "ceiling = true": "ceiling must be a number, not true",
        "ceilling = 3": "did you mean 'ceiling'",
        "clip_norm = 3": 'clip = "ceiling" takes ceiling, steepness, not clip_norm',
    }.items():
        with pytest.raises(OnnxClipError, match=words):
            load_rules(rules_in(tmp_path, line))


@pytest.mark.parametrize("options", [{}, {"threshold_input": "limit"}], ids=["fixed", "fed"])
def test_verify_holds_a_rewrite_to_it(options: dict[str, str]):
    original = onnx.load(SEED)
    clipped = clip_gradients(original, ClipByCeiling(0.5), **options)
    found = verify(original, clipped)
    assert found.ok
    assert all(row.acted for row in found.gradients)
    halved = onnx.ModelProto.FromString(clipped.SerializeToString())
    record = halved.metadata_props[0]
    record.value = record.value.replace('"ceiling":0.5', '"ceiling":0.25')
    assert record.value != clipped.metadata_props[0].value
    assert not verify(original, halved).ok


COMMAND = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
import test_described_once as described
described.CLIPS["ceiling"] = described.ClipByCeiling
from onnx_clip_pass.cli import main
sys.exit(main(sys.argv[1:]))
"""


def command(*arguments: str) -> tuple[int, str, str]:
    """Run the command line in a process that knows the clip from its start."""
    ran = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.returncode, ran.stdout, ran.stderr


def test_the_command_line_has_its_options(tmp_path: Path):
    target = tmp_path / "out.onnx"
    chosen = ["--clip", "ceiling", "--ceiling", "0.5", "--threshold-input", "limit"]
    code, out, err = command("rewrite", str(SEED), "-o", str(target), *chosen, "--verify")
    assert code == 0, err
    assert "each gradient by a ceiling" in " ".join(out.split())
    assert read_record(onnx.load(target)).clips[0].clip["ceiling"] == 0.5
    code, _, err = command("rewrite", str(SEED), "--clip", "ceiling", "--steepness", "1")
    assert (code, "--clip ceiling needs --ceiling" in err) == (2, True)
    _, out, _ = command("rewrite", "--help")
    words = " ".join(out.split())
    assert "ceiling: each gradient by a norm that it names itself." in words
    assert "--steepness FLOAT ceiling: the order. [default: 2]" in words
