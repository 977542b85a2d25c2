"""The compiled error of outlier-victim pairs against the codec itself."""

import numpy as np
import pytest
import torch

from skerry.kernels.victim_search import victim_errors
from skerry.quant.formats.victim_codec import PairCodec

CODECS = [
    PairCodec(),
    PairCodec(tie="even"),
    PairCodec(type="flint"),
    PairCodec(signed=False),
    PairCodec(8),
    PairCodec(8, exponent_bits=2),
]


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_errors_are_the_codecs(codec):
    rng = np.random.default_rng(0)
    rows = (rng.standard_t(2, size=(6, 40)) * codec.normal_max / 2).astype(np.float32)
    rows[0] = np.round(rows[0] * 2) / 2  # ties
    rows[1] = np.linspace(-1.2 * codec.largest, 1.2 * codec.largest, 40)
    scales = np.abs(rng.normal(1.0, 0.4, size=(6, 5))).astype(np.float32) + np.float32(0.1)
    scales[:, 0] = 1.0
    found = victim_errors(
        rows,
        scales,
        codec.type == "flint",
        codec.signed,
        codec.tie == "even",
        float(codec.normal_max),
        float(codec.outlier_levels[0]),
        float(codec.largest),
        codec.mantissa_bits,
    )
    x = torch.from_numpy(rows)
    for c in range(scales.shape[1]):
        s = torch.from_numpy(scales[:, c : c + 1])
        expected = ((codec.decode(codec.encode(x / s)) * s - x).double() ** 2).sum(1)
        np.testing.assert_allclose(found[:, c], expected.numpy(), rtol=1e-5)
