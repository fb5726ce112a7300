"""A kill, a Ctrl-C or a failing disk at every call: the old set is left, the new, or one named.

Every call that changes files is counted, and a run goes wrong at each of them in turn. All other
calls, kinds of failure, and moments drawn at random: `test_more_faults.py`.
"""

from __future__ import annotations

import errno

import pytest
from faulty import FAIL, INTERRUPT, KILL, NAMES, SYNCS
from trials import Trials


def test_killed_at_any_call_the_old_set_is_left_or_the_new_or_one_that_is_named(trials: Trials):
    trials.at_each_call(KILL)
    assert {result.split(": ")[0] for result in trials.results} == {"killed"}


def test_interrupted_at_any_call_the_old_set_is_left_or_the_new_and_nothing_else(trials: Trials):
    trials.at_each_call(INTERRUPT)


@pytest.mark.parametrize("kinds", [NAMES, SYNCS], ids=["names", "syncs"])
def test_where_any_call_fails_what_is_said_of_the_files_is_true(trials: Trials, kinds: int):
    trials.at_each_call(FAIL, errno.EIO, kinds)
