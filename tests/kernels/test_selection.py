"""The k-th smallest of a row against a full sort."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skerry.kernels.selection import kth_smallest

rows = hnp.arrays(
    np.float64, st.integers(1, 60), elements=st.floats(-1e300, 1e300) | st.sampled_from([0.0, 1.0, np.inf])
)


@given(rows, st.data())
def test_it_is_the_kth_of_a_sort_and_loses_nothing(row, data):
    size = data.draw(st.integers(1, len(row)))
    k = data.draw(st.integers(1, size))
    work = row.copy()
    assert kth_smallest(work, size, k) == np.sort(row[:size])[k - 1]
    np.testing.assert_array_equal(np.sort(work[:size]), np.sort(row[:size]))
    np.testing.assert_array_equal(work[size:], row[size:])
