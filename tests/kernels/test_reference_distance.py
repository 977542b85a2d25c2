import numpy as np
import pytest

from skerry.kernels.reference_distance import kth_reference_distance


@pytest.mark.parametrize("kind", ["random", "ties", "constant", "huge", "tiny"])
@pytest.mark.parametrize("d", [1, 3, 40])
def test_equals_the_naive_double_loop(kind, d):
    rng = np.random.default_rng(d)
    X, R = rng.normal(size=(25, d)), rng.normal(size=(17, d))
    if kind == "ties":
        X, R = np.round(X), np.round(R)
    elif kind == "constant":
        X[:], R[:] = 2.0, 2.0
    elif kind in ("huge", "tiny"):
        scale = 1e120 if kind == "huge" else 1e-120
        X, R = X * scale, R * scale
    for k in (1, 5, 17):
        naive = [sorted(float(np.sqrt(((x - r) ** 2).sum())) for r in R)[k - 1] for x in X]
        np.testing.assert_allclose(kth_reference_distance(X, R, k), naive, rtol=1e-12)
