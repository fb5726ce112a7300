"""Thresholds that adapt, held to their formulas and, step by step, to the code of others.

What the code of others gives is recorded: `tests/recorded/README.md` says how.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_clip_pass import AutoClip, OnnxClipError, ZClip

RECORDED = json.loads((Path(__file__).parent / "recorded" / "adapting.json").read_text())
NORMS = RECORDED["norms"]
SPIKE = 90
"""The step of NORMS whose norm is 10,000 times as large as its neighbours'."""
ROUNDING = 1e-14
"""Relative: the same few operations of float64 in another order."""


def limits(clip: AutoClip | ZClip) -> list[float]:
    return [clip.update(norm) for norm in NORMS]


def test_autoclip_is_that_of_its_published_code():
    wanted = RECORDED["autoclip, percentile 10"]
    np.testing.assert_allclose(limits(AutoClip(10)), wanted, rtol=ROUNDING)


@pytest.mark.parametrize(
    ("clip", "recorded"),
    [
        (ZClip(), "zclip"),
        (ZClip(z=2, alpha=0.9, warmup=10), "zclip, z_thresh 2, alpha 0.9, warmup_steps 10"),
    ],
    ids=["defaults", "others"],
)
def test_zclip_is_that_of_its_published_code(clip: ZClip, recorded: str):
    wanted = [math.inf if limit is None else limit for limit in RECORDED[recorded]]
    assert wanted.count(math.inf) == clip.warmup
    assert wanted[SPIKE] < NORMS[SPIKE]
    np.testing.assert_allclose(limits(clip), wanted, rtol=ROUNDING)
    mean, variance = clip.to_dict()["mean"], clip.to_dict()["variance"]
    assert clip.threshold == pytest.approx(mean + clip.z * math.sqrt(variance), rel=ROUNDING)


def test_autoclip_is_smartclip_s_where_that_has_a_window():
    recorded = RECORDED["smartclip AutoClip, window of 40, percentile 10"]
    wanted = recorded["threshold"]
    np.testing.assert_allclose(limits(AutoClip(10, 40)), wanted, rtol=ROUNDING)
    for norm, limit, scale in zip(NORMS, wanted, recorded["scale"], strict=True):
        ours = 1.0 if norm <= limit else limit / norm
        assert abs(ours - scale) <= 1e-8 / max(norm, 1e-8)  # to norms smartclip adds 1e-8


def test_smartclip_differs_elsewhere_as_the_page_says():
    """docs/parity.md; a rewritten smartclip may do better, and the page with it."""
    own = RECORDED["smartclip AutoClip"]
    assert set(own["scale"]) == {1.0}  # the spike in its warm-up is in the deviation ever after
    assert own["threshold"][-1] > 1000 * np.median(NORMS)
    rising = RECORDED["smartclip AutoClip, ema, percentile 10"]["threshold"]
    assert (np.diff(rising) > 0).all()
    assert rising[-1] > np.percentile(NORMS, 90) > limits(AutoClip(10))[-1]
    scored, mean, square = RECORDED["smartclip ZScoreClip"], NORMS[0], NORMS[0] ** 2
    for norm, threshold in zip(NORMS[1:], scored["threshold"][1:], strict=True):
        known = max(norm, 1e-8)
        mean, square = 0.99 * mean + 0.01 * known, 0.99 * square + 0.01 * known**2
        deviation = math.sqrt(max(0.0, square - mean * mean))
        assert threshold == pytest.approx(mean + 3 * deviation, rel=1e-9)
    assert scored["scale"][SPIKE] == pytest.approx(0.01 + 3 * math.sqrt(0.01 * 0.99), rel=1e-3)


@given(
    st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=40),
    st.floats(0, 100),
    st.integers(1, 50) | st.none(),
)
def test_autoclip_is_numpy_s_percentile_of_the_last_norms(
    norms: list[float], percentile: float, history: int | None
):
    clip = AutoClip(percentile, history)
    for t, norm in enumerate(norms, 1):
        seen = norms[:t] if history is None else norms[max(0, t - history) : t]
        assert clip.update(norm) == np.percentile(seen, percentile)


def test_twice_the_moving_median_lets_the_ordinary_pass_and_clips_the_spike():
    clip = AutoClip(50, 20, factor=2)
    for step, norm in enumerate(NORMS):
        before = clip.threshold  # of the norms before this one
        assert before == (2 * np.median(NORMS[max(0, step - 20) : step]) if step else math.inf)
        assert clip.update(norm) == 2 * np.median(NORMS[max(0, step - 19) : step + 1])
        if step == SPIKE:
            assert before < norm / 1000
        elif step > SPIKE:
            assert before < 2 * max(NORMS[SPIKE - 20 : SPIKE])


@pytest.mark.parametrize("make", [AutoClip, lambda: AutoClip(50, 3, 2.0), lambda: ZClip(warmup=3)])
@given(
    norms=st.lists(st.floats(0, 1e6) | st.sampled_from([math.nan, math.inf]), max_size=12),
    at=st.integers(0, 12),
)
def test_it_goes_on_from_json_as_if_it_had_not_stopped(make: Any, norms: list[float], at: int):
    whole, part = make(), make()
    for norm in norms[:at]:
        whole.update(norm)
        part.update(norm)
    part = type(part).from_dict(json.loads(json.dumps(part.to_dict())))
    assert [whole.update(norm) for norm in norms[at:]] == [part.update(n) for n in norms[at:]]


@pytest.mark.parametrize("make", [AutoClip, lambda: ZClip(warmup=2)])
def test_norms_that_are_not_finite_do_not_enter(make: Any):
    with_odd, without = make(), make()
    for norm in (1.0, math.nan, 2.0, math.inf, 3.0, math.nan, 4.0):
        limit = with_odd.update(norm)
        assert not math.isnan(limit)
        if math.isfinite(norm):
            without.update(norm)
    assert with_odd.threshold == without.threshold
    assert make().threshold == math.inf


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: AutoClip(101),
        lambda: AutoClip("10"),  # type: ignore[arg-type]
        lambda: AutoClip(history=0),
        lambda: AutoClip(factor=0),
        lambda: AutoClip(factor=math.inf),
        lambda: AutoClip(factor=None),  # type: ignore[arg-type]
        lambda: AutoClip.from_dict(AutoClip().to_dict() | {"factor": -1.0}),
        lambda: ZClip(z=0),
        lambda: ZClip(alpha=1),
        lambda: ZClip(warmup=0),
        lambda: AutoClip.from_dict({}),
        lambda: ZClip.from_dict(AutoClip().to_dict()),
        lambda: ZClip.from_dict(None),  # type: ignore[arg-type]
        lambda: ZClip.from_dict(ZClip().to_dict() | {"mean": 1.0, "variance": -1.0}),
        lambda: ZClip.from_dict(ZClip().to_dict() | {"first": 5}),
        lambda: AutoClip.from_dict(AutoClip().to_dict() | {"norms": None}),
        lambda: AutoClip.from_dict(AutoClip().to_dict() | {"adapts": np.zeros(2)}),
        lambda: ZClip(eps=0),
        lambda: ZClip().update("1"),  # type: ignore[arg-type]
        lambda: AutoClip().update(np.ones(1)),  # type: ignore[arg-type]
        lambda: AutoClip().update(None),  # type: ignore[arg-type]
    ],
)
def test_settings_that_cannot_be_meant_are_refused(wrong: Any):
    with pytest.raises(OnnxClipError):
        wrong()


def test_numbers_of_numpy_are_kept_as_those_of_json():
    auto = AutoClip(np.float32(10), np.int64(5), np.float32(2))
    z = ZClip(np.float32(2.5), np.float64(0.9), np.int64(3))
    for clip in (auto, z):
        kept = json.loads(json.dumps(clip.to_dict()))
        assert type(clip).from_dict(kept).to_dict() == kept


def test_no_history_is_longer_than_a_deque_can_be():
    with pytest.raises(OnnxClipError, match=r"history must be a whole number, 1 or more and below"):
        AutoClip(history=10**30)


def test_norms_whose_squares_no_float_holds_are_no_error():
    clip = ZClip(warmup=2)
    assert clip.update(1e200) == clip.update(2e200) == math.inf
    assert clip.update(3e200) > 0
