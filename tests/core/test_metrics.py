import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from skerry.core.errors import DataError
from skerry.core.metrics import average_precision, best_f1, fpr_at_tpr, precision_at_k, roc_auc

LABELLED = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([-np.inf, -2.0, 0.0, 0.5, 1.0, 3.0, np.inf])), min_size=2, max_size=30
).filter(lambda rows: len({y for y, _ in rows}) == 2)


def steps(y, s):
    for cut in sorted(set(s), reverse=True):
        flagged = [v >= cut for v in s]
        true = sum(f and label for f, label in zip(flagged, y, strict=True))
        yield true, sum(flagged) - true


@given(LABELLED)
def test_every_measure_equals_its_brute_force_twin(rows):
    y, s = zip(*rows, strict=True)
    positives, negatives = sum(y), len(y) - sum(y)
    pairs = [
        (a > b) + 0.5 * (a == b) for a, p in zip(s, y, strict=True) if p for b, q in zip(s, y, strict=True) if not q
    ]
    assert roc_auc(y, s) == pytest.approx(np.mean(pairs))
    ap, before = 0.0, 0
    for true, false in steps(y, s):
        ap += (true - before) / positives * true / (true + false)
        before = true
    assert average_precision(y, s) == pytest.approx(ap)
    assert fpr_at_tpr(y, s) == pytest.approx(min(f / negatives for t, f in steps(y, s) if t >= 0.95 * positives))
    assert best_f1(y, s) == pytest.approx(max(2 * t / (t + f + positives) for t, f in steps(y, s)))


def test_equal_to_scikit_learn_and_blind_to_row_order():
    rng = np.random.default_rng(0)
    y, s = rng.integers(0, 2, 500), np.round(rng.normal(size=500), 1)
    assert roc_auc(y, s) == pytest.approx(roc_auc_score(y, s))
    assert average_precision(y, s) == pytest.approx(average_precision_score(y, s))
    order = rng.permutation(500)
    for measure in (roc_auc, average_precision, fpr_at_tpr, best_f1, precision_at_k):
        assert measure(y[order], s[order]) == pytest.approx(measure(y, s), abs=1e-12)


def test_precision_at_k_is_the_expectation_over_ties():
    assert precision_at_k([1, 0, 0, 1], [1.0, 1, 1, 2], 2) == pytest.approx((1 + 1 / 3) / 2)


@pytest.mark.parametrize(
    ("y", "s", "message"),
    [([0, 0], [1, 2], "one class"), ([0, 1], [1], "length"), ([0, 2], [1, 2], "0 or 1"), ([0, 1], [1, np.nan], "NaN")],
)
def test_bad_input_is_refused(y, s, message):
    with pytest.raises(DataError, match=message):
        roc_auc(y, s)
