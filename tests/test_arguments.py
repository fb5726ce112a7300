"""What the public functions say to arguments of the wrong kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_clip_pass import (
    AdaptiveGradientClip,
    Chain,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByRMS,
    GradientClipByValue,
    OnnxClipError,
    Rule,
    clip_artifacts,
    clip_gradients,
    clip_gradients_file,
    extract_clip,
    extract_clip_file,
    find_gradients,
    load_rules,
    probe_gradients,
    strip,
)
from onnx_clip_pass.artifacts import strip_artifacts
from onnx_clip_pass.clips import clip_from_dict
from onnx_clip_pass.files import strip_file
from onnx_clip_pass.verification import verify

MODELS = Path(__file__).parent.parent / "models"
SEED = MODELS / "seed" / "train_step.onnx"
FOLDER = MODELS / "ort_artifacts" / "mlp_mse_sgd"
CLIP = GradientClipByNorm(1.0)
FLAGS = np.array([True, False])


def seed_model() -> onnx.ModelProto:
    return onnx.load(SEED)


def clip_seed(**options):
    return clip_gradients(seed_model(), CLIP, **options)


def clip_file(**options):
    return clip_gradients_file(SEED, "never.onnx", CLIP, **options)


def clip_folder(**options):
    return clip_artifacts(FOLDER, "never", CLIP, **options)


def strip_seed(**options):
    return strip_file(SEED, "never.onnx", **options)


def strip_folder(**options):
    return strip_artifacts(FOLDER, "never", **options)


CASES = {
    "find in a number": (lambda: find_gradients(3), "a ModelProto or a path, not 3"),
    "strip a path": (lambda: strip("m.onnx"), "expected a ModelProto, not str"),
    "clip a path": (lambda: clip_gradients("m", CLIP), "not str; .* clip_gradients_file"),
    "extract a path": (lambda: extract_clip("e", CLIP), "not str; .* extract_clip_file"),
    "apply to an array": (lambda: CLIP.apply(FLAGS), "mapping of parameter names .* not ndarray"),
    "chain applied to a list": (lambda: Chain(CLIP).apply([1, 2]), "parameter names .* not list"),
    "apply with a policy": (
        lambda: CLIP.apply({}, nonfinite="zeros"),
        "nonfinite must be one of propagate, zero, keep, not 'zeros'",
    ),
    "apply with parameters": (lambda: CLIP.apply({}, parameters=[1]), "parameters must be .* list"),
    "probe with a path": (lambda: probe_gradients(SEED, feeds="x.npz"), "feeds must be a mapping"),
    "probe one name": (lambda: probe_gradients(SEED, data="abc"), "data must be a list of names"),
    "probe of flags": (lambda: probe_gradients(SEED, inner=FLAGS), "inner must be True or False"),
    "probe of sizes": (lambda: probe_gradients(SEED, dims={"N": -1}), "'N' must be a whole number"),
    "probe of a list": (lambda: probe_gradients(SEED, dims=["N"]), "dims must be a mapping"),
    "probe of a seed": (lambda: probe_gradients(SEED, seed=-1), "seed must be a whole number"),
    "input that is a number": (lambda: clip_seed(threshold_input=3), "name of an input, not 3"),
    "input that is bytes": (lambda: clip_seed(threshold_input=b"x"), "name of an input, not b'x'"),
    "input without a name": (lambda: clip_seed(threshold_input=""), "name of an input, not ''"),
    "measuring flags": (lambda: clip_seed(measure_only=FLAGS), "measure_only must be True or"),
    "emit a number": (lambda: clip_seed(emit=[1]), "emit takes a list of .*, not 1"),
    "emit None": (lambda: clip_seed(emit=None), r"emit takes a list of .*, and \(\) .* not None"),
    "emit no list": (lambda: clip_seed(emit=5), "emit takes a list of norm, scale, clipped.*not 5"),
    "file: emit None": (lambda: clip_file(emit=None), "emit takes a list of .*, not None"),
    "a vector of nothing": (lambda: clip_seed(emit_as="vector"), "emit_as='vector' needs some"),
    "file: a vector of nothing": (
        lambda: clip_file(emit_as="vector", emit=[]),
        "needs something to emit: say norm, scale or clipped",
    ),
    "parameter by number": (lambda: clip_seed(gradients={"g": 5}), "must map names .*'g': 5"),
    "gradient by number": (lambda: clip_seed(gradients={5: "W"}), "must map names .*5: 'W'"),
    "gradients as found": (
        lambda: clip_seed(gradients=find_gradients(seed_model())),
        r"must be names, not Gradient objects: .*{g.name: g.parameter.name for g in found}$",
    ),
    "policy of arrays": (lambda: clip_seed(nonfinite=FLAGS), "nonfinite must be one of .* array"),
    "scale by text": (lambda: clip_seed(loss_scale=True), "loss_scale must be .* not True"),
    "file: flags": (lambda: clip_file(force=FLAGS), "force must be True or False"),
    "file: dry_run": (lambda: clip_file(dry_run="no"), "dry_run must be True or False, not 'no'"),
    "file: data": (lambda: clip_file(external_data="lnk"), "one of copy, link, not 'lnk'"),
    "extract: flags": (lambda: extract_clip_file(SEED, "x", CLIP, force=1), "force must be True"),
    "folder: emit_as": (lambda: clip_folder(emit_as="abc"), "one of each, vector, not 'abc'"),
    "folder: scale": (lambda: clip_folder(loss_scale=True), "loss_scale must be .* not True"),
    "folder: data": (lambda: clip_folder(external_data="lnk"), "one of copy, link, not 'lnk'"),
    "folder: flags": (lambda: clip_folder(replace=FLAGS), "replace must be True or False"),
    "strip: flags": (lambda: strip_seed(force="yes"), "force must be True or False, not 'yes'"),
    "strip: data": (lambda: strip_seed(external_data="lnik"), "copy, link, not 'lnik'"),
    "strip a folder: flags": (lambda: strip_folder(force="yes"), "force must be .* not 'yes'"),
    "strip a folder: data": (lambda: strip_folder(external_data="lnik"), "link, not 'lnik'"),
    "rules of a number": (lambda: load_rules(5), "path must be a path, not 5"),
    "file: source": (lambda: clip_gradients_file(5, "x", CLIP), "source must be a path, not 5"),
    "file: target": (lambda: clip_gradients_file(SEED, 5, CLIP), "target must be a path, not 5"),
    "file: a NUL": (lambda: clip_gradients_file(SEED, "x\0", CLIP), "no name of a file holds a"),
    "file: 300 letters": (
        lambda: clip_gradients_file(SEED, "x" * 300, CLIP, replace=True),
        "cannot write .*File name too long",
    ),
    "strip: target": (lambda: strip_file(SEED, 5), "target must be a path, not 5"),
    "folder: source": (lambda: clip_artifacts(5, "x", CLIP), "folder must be a path, not 5"),
    "extract: source": (lambda: extract_clip_file(5, "x", CLIP), "source must be a path, not 5"),
    "extract: target": (lambda: extract_clip_file(SEED, 5, CLIP), "target must be a path, not 5"),
    "probe a number": (lambda: probe_gradients(5), "model must be a ModelProto or a path, not 5"),
    "verify a number": (lambda: verify(SEED, 5), "the rewritten model must be .* path, not 5"),
    "norm per sample": (lambda: GradientClipByNorm(1.0, per_sample="abc"), "per_sample must be"),
    "group per sample": (
        lambda: GradientClipByGlobalNorm(1.0, per_sample=FLAGS),
        "per_sample must be",
    ),
    "norm as text": (lambda: GradientClipByNorm("1.0"), "a positive number, .* not '1.0'"),
    "norm as an array": (lambda: GradientClipByNorm(np.array([1.0])), "a positive number"),
    "order as text": (lambda: GradientClipByNorm(1.0, ord="inf"), "ord must be .* not 'inf'"),
    "value as text": (lambda: GradientClipByValue("1", "-1"), "max must be a number, not '1'"),
    "rms as text": (lambda: GradientClipByRMS("1"), "threshold must be a positive number"),
    "unit as text": (lambda: AdaptiveGradientClip("1"), "clipping must be a positive number"),
    "bounds of a rule": (lambda: Rule("*", CLIP, bounds=3), "bounds must be a Bounds, not 3"),
    "input of a rule": (lambda: Rule("*", CLIP, threshold_input=3), "name of an input, not 3"),
}


@pytest.mark.parametrize(("call", "words"), CASES.values(), ids=CASES)
def test_an_argument_of_another_kind_says_what_was_expected(call, words, tmp_path, monkeypatch):
    if "probe" in words or "probe" in call.__code__.co_names:
        pytest.importorskip("onnxruntime", reason="probing runs the model")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OnnxClipError, match=words):
        call()
    assert not list(tmp_path.iterdir())


MISSPELT = {
    "file": lambda: clip_file(non_finite="zero"),
    "extract": lambda: extract_clip_file(SEED, "x", CLIP, non_finite="zero"),
    "folder": lambda: clip_folder(non_finite="zero"),
}


@pytest.mark.parametrize("call", MISSPELT.values(), ids=MISSPELT)
def test_an_argument_that_there_is_not_is_refused(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match="non_finite"):
        call()
    assert not list(tmp_path.iterdir())


def test_numbers_and_flags_of_numpy_are_numbers_and_flags():
    clip = GradientClipByNorm(np.float32(2), ord=np.array(1), per_sample=np.bool_(True))
    assert (clip.clip_norm, clip.ord, clip.per_sample) == (2.0, 1.0, True)


@pytest.mark.parametrize(
    "clip",
    [
        GradientClipByNorm(np.inf, ord=np.inf),
        GradientClipByGlobalNorm(np.inf, group_name="inf"),
        GradientClipByValue(np.inf, -np.inf),
        GradientClipByValue(1.0, -np.inf),
        AdaptiveGradientClip(1.0, eps=np.inf),
    ],
)
def test_a_record_says_inf_in_words_and_is_read_back(clip):
    facts = clip.to_dict()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert clip_from_dict(facts).settings() == clip.settings()


def test_what_stands_in_the_way_names_the_way_out_in_python_too(tmp_path):
    there = tmp_path / "there.onnx"
    there.write_bytes(SEED.read_bytes())
    with pytest.raises(OnnxClipError, match=r"bears no record .* force=True"):
        clip_gradients_file(SEED, there, CLIP)
    with pytest.raises(OnnxClipError, match=r"replace=True"):
        clip_gradients_file(there, there, CLIP)
    with pytest.raises(OnnxClipError, match=r"force=True"):
        extract_clip_file(SEED, there, CLIP)
    assert there.read_bytes() == SEED.read_bytes()
