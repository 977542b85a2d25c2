import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.core.errors import DataError, ParameterError
from skerry.core.events import AlarmRule, Event, EventStream, event_flags, flag_runs

FLAGS = st.lists(st.booleans(), max_size=60)
RULES = st.builds(AlarmRule, st.integers(0, 4), st.integers(1, 4), st.integers(0, 8))


def streamed(rule, flags, scores):
    stream = rule.stream()
    out = [stream.update(f, s) for f, s in zip(flags, scores, strict=True)]
    return [e for e in [*out, stream.flush()] if e is not None]


def by_hand(rule, flags, scores):
    """The three rules, step by step, with lists."""
    events, quiet, group = [], 0, []

    def close(group):
        if not group or group[-1] - group[0] + 1 < rule.min_length:
            return None
        peak = max(group, key=lambda t: (scores[t], -t))
        return Event(group[0], group[-1] + 1, peak, scores[peak])

    for t in range(len(flags) + rule.merge_gap + 2):
        flag = t < len(flags) and flags[t]
        if group and t - group[-1] - 1 > rule.merge_gap - (not flag):
            if event := close(group):
                events.append(event)
                quiet = event.stop + rule.cooldown
            group = []
        if flag and t >= quiet:
            group.append(t)
    return events


@settings(max_examples=500)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=60), RULES)
def test_batch_stream_and_hand_give_the_same_events(steps, rule):
    flags, scores = [f for f, _ in steps], [float(s) for _, s in steps]
    expected = by_hand(rule, flags, scores)
    assert rule.events(flags, scores) == expected
    assert streamed(rule, flags, scores) == expected
    bare = [(e.start, e.stop) for e in expected]
    assert [(e.start, e.stop) for e in rule.events(flags)] == bare
    assert [(e.start, e.stop) for e in streamed(rule, flags, [math.nan] * len(flags))] == bare


@given(FLAGS, RULES, st.integers(0, 60))
def test_a_stream_resumed_anywhere_loses_and_repeats_nothing(flags, rule, cut):
    scores = np.random.default_rng(0).normal(size=len(flags))
    first = rule.stream()
    out = [first.update(f, s) for f, s in zip(flags[:cut], scores[:cut], strict=True)]
    second = EventStream(rule, json.loads(json.dumps(first.state())))
    out += [second.update(f, s) for f, s in zip(flags[cut:], scores[cut:], strict=True)]
    out.append(second.flush())
    assert [e for e in out if e] == rule.events(flags, scores)
    assert second.n_steps == len(flags)


@given(FLAGS, RULES)
def test_events_keep_the_promises_of_their_rule(flags, rule):
    events = rule.events(flags)
    for e in events:
        assert e.length >= rule.min_length
        assert flags[e.start] and flags[e.stop - 1]
    for a, b in zip(events, events[1:], strict=False):
        assert b.start - a.stop >= max(rule.cooldown, 1 if rule.cooldown else rule.merge_gap + 1)


@given(FLAGS)
def test_the_plain_rule_gives_the_runs_and_the_flags_back(flags):
    starts, stops = flag_runs(np.array(flags, dtype=bool))
    events = AlarmRule().events(np.array(flags, dtype=bool))
    assert [(e.start, e.stop) for e in events] == list(zip(starts, stops, strict=True))
    np.testing.assert_array_equal(event_flags(events, len(flags)), np.array(flags, dtype=bool))


def test_an_anomaly_that_outlasts_the_silence_alarms_again():
    flags = [1, 0, 0, 1, 1, 1, 1]
    assert [(e.start, e.stop) for e in AlarmRule(cooldown=4).events(flags)] == [(0, 1), (5, 7)]
    assert [(e.start, e.stop) for e in AlarmRule(cooldown=4, min_length=3).events(flags)] == [(3, 7)]


def test_a_person_is_called_when_the_event_is_long_enough_not_when_it_ends():
    stream = AlarmRule(min_length=2, merge_gap=3).stream()
    seen = []
    for flag in (1, 1, 1):
        stream.update(flag)
        seen.append(stream.open)
    assert seen[0] is None
    assert (seen[1].start, seen[1].stop) == (0, 2)
    assert (seen[2].start, seen[2].stop) == (0, 3)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_nothing_and_everything(n):
    assert AlarmRule(2, 1, 3).events(np.zeros(n)) == []
    assert [(e.start, e.stop) for e in AlarmRule().events(np.ones(n))] == ([(0, n)] if n else [])


def test_bad_input_names_the_row():
    with pytest.raises(DataError, match="row 2"):
        AlarmRule().events([0, 1, np.nan])
    with pytest.raises(DataError, match="score at row 1"):
        AlarmRule().events([0, 1], [np.nan, np.nan])
    with pytest.raises(DataError, match="differ in shape"):
        AlarmRule().events([0, 1], [1.0])
    with pytest.raises(DataError, match="shape"):
        AlarmRule().events([[0, 1]])
    with pytest.raises(DataError, match="outside"):
        event_flags([Event(2, 5, 2)], 4)
    with pytest.raises(DataError, match="not the state"):
        EventStream(AlarmRule(), {"n_steps": 3})


@pytest.mark.parametrize("bad", [{"merge_gap": -1}, {"min_length": 0}, {"cooldown": 1.5}, {"min_length": True}])
def test_bad_rules_say_what_is_allowed(bad):
    with pytest.raises(ParameterError, match="whole number"):
        AlarmRule(**bad)


def test_scores_of_unflagged_steps_do_not_matter():
    flags, scores = [0, 1, 1, 0], [9.0, 1.0, 2.0, np.nan]
    assert AlarmRule().events(flags, scores) == [Event(1, 3, 2, 2.0)]


def test_the_state_is_plain_numbers_whatever_the_scores_are():
    stream = AlarmRule(merge_gap=2).stream()
    stream.update(np.bool_(True), np.float32(1.5))
    assert json.loads(json.dumps(stream.state()))["height"] == 1.5
