"""How rows are drawn that set a threshold on a long table."""

import numpy as np
import pytest

from skerry.core.detector import _distinct_rows


@pytest.mark.parametrize(("n", "k"), [(100, 100), (100, 60), (1000, 60), (10_000, 2500)])
def test_rows_are_distinct_ascending_and_the_same_again(n, k):
    rows = _distinct_rows(np.random.RandomState(0), n, k)
    assert len(rows) == k and rows[0] >= 0 and rows[-1] < n
    assert np.all(np.diff(rows) > 0)
    np.testing.assert_array_equal(rows, _distinct_rows(np.random.RandomState(0), n, k))


@pytest.mark.parametrize(("n", "k"), [(12, 6), (40, 6)])
def test_every_row_is_as_likely(n, k):
    rng = np.random.RandomState(1)
    counts = np.bincount(np.concatenate([_distinct_rows(rng, n, k) for _ in range(4000)]), minlength=n)
    expected = 4000 * k / n
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))
