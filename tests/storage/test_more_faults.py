"""What `test_faults.py` does with more calls and faults, which takes minutes: every night."""

from __future__ import annotations

import errno
import os
import random

import pytest
from faulty import (
    CHANGES,
    DATA,
    FAIL,
    FAIL_FROM_HERE,
    INTERRUPT,
    KILL,
    LOOKS,
    NAMES,
    READS,
    SHORT,
    SYNCS,
)
from trials import LEAVES_GAPS, Trials

if os.environ.get("ONNX_CLIP_NIGHTLY") != "1":
    pytest.skip("takes minutes: set ONNX_CLIP_NIGHTLY=1", allow_module_level=True)

RANDOM_MOMENTS = 60


@pytest.mark.parametrize("action", [KILL, INTERRUPT, FAIL], ids=["killed", "interrupted", "failed"])
def test_a_fault_in_the_run_after_a_kill_is_no_worse(trials: Trials, action: int):
    """The earlier run dies where it has begun, and where all but the main path is in place."""
    trials.killed_at = 0
    named = [at for at in range(1, trials.calls(CHANGES) + 1) if trials.is_named_after(at)]
    for trials.killed_at in sorted({*named[:1], *named[-1:]}):
        trials.at_each_call(action, errno.EIO)
    trials.killed_at = 0
    assert bool(named) == (trials.name in LEAVES_GAPS)


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.EXDEV, errno.EOPNOTSUPP])
@pytest.mark.parametrize("kinds", [NAMES, DATA, SYNCS, READS, LOOKS], ids=str)
def test_whatever_fails_what_is_said_of_the_files_is_true(trials: Trials, kinds: int, code: int):
    trials.at_each_call(FAIL, code, kinds)


def test_killed_at_any_call_that_only_looks_too(trials: Trials):
    trials.at_each_call(KILL, kinds=READS | LOOKS)


def test_interrupted_at_any_call_that_only_looks_too(trials: Trials):
    trials.at_each_call(INTERRUPT, kinds=READS | LOOKS)


def test_calls_that_do_part_of_their_work_are_repeated(trials: Trials):
    trials.at_each_call(SHORT, kinds=DATA | READS)


def test_a_disk_that_is_full_from_any_call_on_leaves_the_old_set(trials: Trials):
    trials.at_each_call(FAIL_FROM_HERE, errno.ENOSPC, DATA)


def test_of_a_disk_that_dies_at_any_call_what_is_said_is_true(trials: Trials):
    trials.at_each_call(FAIL_FROM_HERE, errno.EIO)


@pytest.mark.parametrize("action", [KILL, INTERRUPT], ids=["killed", "interrupted"])
def test_at_moments_drawn_at_random_it_is_no_different(trials: Trials, action: int):
    rng = random.Random(trials.name)
    for _ in range(RANDOM_MOMENTS):
        trials.one(action=action, after=rng.uniform(1e-4, 0.04))
