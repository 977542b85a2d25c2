import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.core.errors import DataError, ParameterError
from skerry.core.metrics import average_precision, roc_auc
from skerry.core.vus import range_areas, range_auc_pr, range_auc_roc, vus_pr, vus_roc

SERIES = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 1.0, 3.0])), min_size=2, max_size=40
).filter(lambda rows: len({y for y, _ in rows}) == 2)


def soft_label(y, window):
    """Equation 1, one anomaly and one step at a time."""
    n, out = len(y), np.array(y, dtype=float)
    for s, e in runs(y):
        for t in range(n):
            if s - window // 2 <= t < s:
                out[t] += np.sqrt(1 - (s - t) / window)
            if e < t <= e + window // 2:
                out[t] += np.sqrt(1 - (t - e) / window)
    return np.minimum(out, 1.0)


def runs(y):
    """First and last step of every anomaly."""
    padded = [0, *y, 0]
    return [
        (i - 1, next(j for j in range(i, len(padded)) if not padded[j]) - 2)
        for i in range(1, len(padded))
        if padded[i] and not padded[i - 1]
    ]


def buffered(y, half):
    out = []
    for s, e in runs(y):
        if out and out[-1][1] >= s - half:
            out[-1][1] = e + half
        else:
            out.append([s - half, e + half])
    return [(max(a, 0), min(b, len(y) - 1)) for a, b in out]


def curve(y, s, window, cuts, whole):
    label, n = soft_label(y, window), len(y)
    for cut in cuts:
        flagged = np.array([v >= cut for v in s])
        tp = (label * flagged).sum()
        buffer = sum(label[t] for t in range(n) if not y[t] and (whole or flagged[t]))
        positives = sum(y) + buffer / 2
        found = np.mean([flagged[a : b + 1].any() for a, b in buffered(y, window // 2)])
        yield min(tp / positives, 1) * found, (flagged.sum() - tp) / (n - positives), tp / flagged.sum()


def twin(y, s, window, whole=False, n_thresholds=None):
    """ROC and PR area, one threshold at a time."""
    cuts = sorted(set(s), reverse=True)
    if n_thresholds:
        cuts = [sorted(s, reverse=True)[int(i)] for i in np.linspace(0, len(s) - 1, n_thresholds)]
    roc, pr, t0, f0 = 0.0, 0.0, 0.0, 0.0
    for t, f, p in curve(y, s, window, cuts, whole):
        roc += (f - f0) * (t + t0) / 2
        pr += (t - t0) * p
        t0, f0 = t, f
    return roc + (1 - f0) * (t0 + 1) / 2, pr


@settings(max_examples=200, deadline=None)
@given(SERIES, st.integers(0, 12), st.sampled_from(["flagged", "all"]), st.none() | st.integers(2, 60))
def test_areas_equal_the_brute_force_twin(rows, window, buffer, n_thresholds):
    y, s = zip(*rows, strict=True)
    roc, pr = range_areas(y, s, window, buffer=buffer, n_thresholds=n_thresholds)
    assert (roc[0], pr[0]) == pytest.approx(twin(y, s, window, buffer == "all", n_thresholds), abs=1e-12)


def test_vus_is_the_mean_over_the_buffers_and_matches_a_longer_series():
    rng = np.random.default_rng(0)
    y = np.zeros(400, dtype=int)
    for a, b in ((0, 7), (30, 31), (34, 40), (41, 60), (200, 230), (398, 400)):
        y[a:b] = 1
    s = np.round(rng.normal(size=400) + y, 1)
    twins = np.array([twin(y, s, w) for w in range(31)])
    assert vus_roc(y, s, 30) == pytest.approx(twins[:, 0].mean(), abs=1e-12)
    assert vus_pr(y, s, 30) == pytest.approx(twins[:, 1].mean(), abs=1e-12)
    assert range_auc_roc(y, s, 30) == pytest.approx(twins[30, 0], abs=1e-12)
    assert range_auc_pr(y, s, 30) == pytest.approx(twins[30, 1], abs=1e-12)
    many = range_areas(y, s, [0, 30])
    np.testing.assert_allclose(np.transpose(many), twins[[0, 30]], atol=1e-12)


def test_without_buffer_one_anomaly_is_the_plain_measure():
    rng = np.random.default_rng(1)
    y = np.zeros(300, dtype=int)
    y[100] = 1  # one step: found as soon as any of it is flagged
    s = np.round(rng.normal(size=300) + y, 1)
    assert range_auc_roc(y, s, 0) == pytest.approx(roc_auc(y, s))
    assert range_auc_pr(y, s, 0) == pytest.approx(average_precision(y, s))


def test_perfect_random_and_constant_scores():
    rng = np.random.default_rng(2)
    y = np.zeros(20_000, dtype=int)
    y[5000:5200] = y[12_000:12_300] = 1
    assert vus_pr(y, y, 0) == vus_roc(y, y, 0) == pytest.approx(1.0)
    assert abs(vus_roc(y, rng.normal(size=y.size), 40) - 0.5) < 0.05
    assert vus_pr(y, np.zeros(y.size), 40) < 0.05  # the share of anomalies with their buffers
    assert abs(vus_roc(y, np.zeros(y.size), 40) - 0.5) < 0.05


def test_a_buffer_forgives_a_shift_and_only_ranks_matter():
    y = np.zeros(500, dtype=int)
    y[200:240] = 1
    s = np.zeros(500)
    s[240:244] = np.arange(4, 0, -1)  # an alarm just after the end
    areas = range_areas(y, s, [0, 10, 20])[1]
    assert areas[0] + 0.02 < areas[1]
    assert areas[1] > range_areas(y, s, 10, buffer="all")[1][0]  # unflagged buffer costs nothing
    np.testing.assert_allclose(range_areas(y, np.exp(3 * s), [0, 10, 20])[1], areas)


@pytest.mark.parametrize(
    ("y", "s", "message"),
    [
        ([0, 0], [1, 2], "one class"),
        ([1, 1], [1, 2], "one class"),
        ([1], [1], "one class"),
        ([0, 1], [1], "differ in shape"),
        ([0, 2], [1, 2], "row 1"),
        ([0, 1, 1], [1, 2, np.nan], "row 2"),
    ],
)
def test_bad_input_is_refused(y, s, message):
    for measure in (vus_pr, vus_roc, range_auc_pr, range_auc_roc):
        with pytest.raises(DataError, match=message):
            measure(y, s)


@pytest.mark.parametrize("windows", [-1, 1.5, []])
def test_bad_windows_are_refused(windows):
    with pytest.raises(ParameterError, match="whole numbers"):
        range_areas([0, 1], [0, 1], windows)
    with pytest.raises(ParameterError, match="at least 2"):
        range_areas([0, 1], [0, 1], 0, n_thresholds=1)
    with pytest.raises(ParameterError, match="'flagged' or 'all'"):
        vus_pr([0, 1], [0, 1], 2, buffer="half")
