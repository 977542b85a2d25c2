"""The picture of a similarity matrix: its pixels are the matrix, its marks the event."""

import base64
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.report.heat_map import DARK, LIGHT, SIDE, heat_map, png, pooled


@given(st.integers(1, 60), st.integers(1, 40), st.integers(0, 99))
def test_blocks_hold_the_mean(n, most, seed):
    S = np.random.default_rng(seed).random((n, n))
    P = pooled(S, most)
    assert P.shape == (min(n, most),) * 2
    edges = np.r_[np.unique(np.linspace(0, n, min(n, most), endpoint=False).astype(int)), n]
    spans = list(zip(edges[:-1], edges[1:], strict=True))
    want = [[S[a:b, c:d].mean() for c, d in spans] for a, b in spans]
    np.testing.assert_allclose(P, want)


def test_pixels_are_the_matrix():
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    values = np.array([[0.0, 0.25], [0.5, 1.0], [np.nan, 7.0]])
    pixels = np.asarray(image.open(io.BytesIO(png(values))).convert("RGB")).astype(float)
    assert pixels.shape == (3, 2, 3)
    share = np.clip(np.nan_to_num(values), 0, 1)[..., None]
    np.testing.assert_allclose(pixels, (1 - share) * np.array(LIGHT) + share * np.array(DARK), atol=1.5)


@pytest.mark.parametrize("n", [1, 2, 90, 512])
def test_the_picture_is_sound_and_small_and_marks_the_event(n):
    S = np.abs(np.cos(np.subtract.outer(np.arange(n), np.arange(n)) / 9))
    text = heat_map(S, 100, (100 + n // 2, 100 + n // 2 + 3), "<first>", "l&st")
    ET.fromstring(text)
    assert len(text) < 30_000
    assert "&lt;first&gt;" in text
    marks = [float(x) for x in re.findall(r'class="cut" x1="([\d.]+)" x2="\1"', text)]
    assert marks[0] == pytest.approx(8 + (n // 2) / n * SIDE, abs=0.1)
    assert marks[1] == pytest.approx(8 + max(min((n // 2 + 3) / n, 1) * SIDE, n // 2 / n * SIDE + 1.5), abs=0.1)
    assert base64.b64decode(re.search(r"base64,([^\"]+)", text).group(1)).startswith(b"\x89PNG")


def test_a_constant_matrix_is_one_shade():
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    text = heat_map(np.ones((9, 9)), 0, (2, 4), "a", "b")
    data = base64.b64decode(re.search(r"base64,([^\"]+)", text).group(1))
    assert (np.asarray(image.open(io.BytesIO(data)).convert("RGB")) == DARK).all()
