"""The hash table of rows against a dictionary."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from skerry.kernels.distinct import RowTable

VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 5e-324, 1e100, -1e100, 0.1])


@settings(max_examples=60, deadline=None)
@given(arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=VALUES), st.data())
def test_equals_a_dictionary(X, data):
    table = RowTable(X)
    seen = {}
    inverse = [seen.setdefault(tuple(row + 0.0), len(seen)) for row in X]
    np.testing.assert_array_equal(table.rows, np.array(list(seen)))
    np.testing.assert_array_equal(table.inverse, inverse)
    np.testing.assert_array_equal(table.counts, np.bincount(inverse))
    Q = data.draw(arrays(np.float64, (5, X.shape[1]), elements=VALUES))
    assert table.find(Q).tolist() == [seen.get(tuple(row + 0.0), -1) for row in Q]
    np.testing.assert_array_equal(table.find(X), inverse)


def test_many_rows_of_both_widths():
    rng = np.random.default_rng(0)
    X = rng.integers(0, 40, (5000, 2)).astype(np.float32)
    table = RowTable(X)
    assert len(table.rows) == len(np.unique(X, axis=0))
    np.testing.assert_array_equal(table.rows[table.inverse], X)
    assert (table.find(X + np.float32(0.5)) == -1).all()
