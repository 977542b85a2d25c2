"""Half-space masses against trees walked by hand."""

import numpy as np

from skerry.kernels.half_space import grow_half_spaces, stream_masses


def test_splits_halve_what_their_parents_left():
    low, high = np.array([[0.0, 10.0]]), np.array([[8.0, 20.0]])
    split = grow_half_spaces(low, high, np.array([[0, 0, 1, 1, 0, 1, 0]]))
    np.testing.assert_array_equal(split[0], [4.0, 2.0, 15.0, 15.0, 3.0, 12.5, 6.0])


def test_masses_equal_a_walk_by_hand():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(90, 3))
    depth, trees, window, limit = 4, 5, 20, 2.0
    column = rng.integers(0, 3, size=(trees, 2**depth - 1))
    split = grow_half_spaces(np.full((trees, 3), -3.0), np.full((trees, 3), 3.0), column)
    reference, latest = np.zeros((trees, 2 ** (depth + 1) - 1)), np.zeros((trees, 2 ** (depth + 1) - 1))
    got = stream_masses(X, column, split, reference, latest, np.zeros(1, dtype=np.int64), window, limit)

    masses = [{} for _ in range(trees)]
    waiting = [{} for _ in range(trees)]
    want = []
    for i, x in enumerate(X):
        found = []
        for t in range(trees):
            path, node = [0], 0
            while node < 2**depth - 1:
                node = 2 * node + (1 if x[column[t, node]] < split[t, node] else 2)
                path.append(node)
            stop = next((k for k, p in enumerate(path) if masses[t].get(p, 0) <= limit), depth)
            found.append(masses[t].get(path[stop], 0) * 2**stop)
            for p in path:
                waiting[t][p] = waiting[t].get(p, 0) + 1
        want.append(np.mean(found))
        if (i + 1) % window == 0:
            masses, waiting = waiting, [{} for _ in range(trees)]
    np.testing.assert_allclose(got, want)
    assert got[:window].max() == 0.0
    assert got[window:].max() > 0.0
