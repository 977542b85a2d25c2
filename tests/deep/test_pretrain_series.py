"""The trained encoder of Themis: its synthetic series, its training, its file."""

import json
import os

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'deep'")
safetensors = pytest.importorskip("safetensors.torch", reason="needs the extra 'deep'")
safe_open = pytest.importorskip("safetensors").safe_open

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from skerry.core.errors import DataError, ModelError, ParameterError  # noqa: E402
from skerry.deep.pretrain_series import main, pretrain, span_masks  # noqa: E402
from skerry.deep.series_encoder import SeriesEncoder, SeriesTransformer, scaled  # noqa: E402
from skerry.deep.synthetic_series import disturbed, drawn_kernel, gaussian_paths  # noqa: E402
from skerry.detect.series.themis import Themis  # noqa: E402

TINY = {"batch_size": 4, "length": 64, "n_kernels": 6, "width": 16, "layers": 1, "heads": 2}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "tiny.safetensors"
    pretrain(path, steps=30, seed=1, **TINY)
    return path


@given(st.integers(0, 500))
def test_kernels_are_covariances(seed):
    K = drawn_kernel(np.random.RandomState(seed), 40)
    np.testing.assert_allclose(K, K.T)
    assert np.linalg.eigvalsh(K).min() > -1e-8 * max(np.trace(K), 1.0)


def test_paths_are_scaled_and_depend_on_the_seed_alone():
    x = gaussian_paths(5, paths=3, length=128, random_state=2)
    assert x.shape == (15, 128)
    assert np.isfinite(x).all()
    np.testing.assert_allclose(np.abs(x).mean(axis=1), 1.0, atol=1e-4)
    np.testing.assert_array_equal(gaussian_paths(5, paths=3, length=128, random_state=2), x)
    assert not np.array_equal(gaussian_paths(5, paths=3, length=128, random_state=3), x)


def test_about_one_series_in_seven_is_disturbed_and_the_input_kept():
    x = np.zeros((4_000, 100), dtype=np.float32)
    y = disturbed(x, np.random.RandomState(0))
    assert not x.any()
    assert (y != 0).any(axis=1).mean() == pytest.approx(1 - 0.95**3, abs=0.02)


@given(st.integers(8, 400), st.integers(0, 99))
def test_three_tenths_are_hidden_in_spans(n, seed):
    shown = span_masks((3, n), np.random.RandomState(seed))
    hidden = (shown == 0).mean(axis=1)
    assert (hidden >= 0.3).all()
    assert (hidden < 0.3 + 32 / n + 1e-9).all()


def test_the_scale_and_the_level_of_a_window_do_not_matter_and_hidden_steps_do_not_count():
    x = torch.randn(2, 50, dtype=torch.float64)
    shown = torch.ones_like(x)
    shown[:, 10:20] = 0
    want = scaled(x, shown)
    torch.testing.assert_close(scaled(7.0 * x - 3.0, shown), want)
    x[:, 12] = 1e6
    torch.testing.assert_close(scaled(x, shown), want)
    assert (scaled(torch.full((1, 9), 4.0), torch.ones(1, 9)) == 0).all()


def test_no_hidden_value_reaches_the_network():
    torch.manual_seed(0)
    net = SeriesTransformer(16, 1, 2).eval()
    x, shown = torch.randn(2, 40), torch.ones(2, 40)
    shown[0, 7:12] = 0
    with torch.no_grad():
        y = net(x, shown)
        x[0, 7:12] = 100.0
        torch.testing.assert_close(net(x, shown), y)
        x[0, 20] = 100.0
        assert not torch.allclose(net(x, shown), y)


def test_places_are_relative():
    torch.manual_seed(0)
    net = SeriesTransformer(16, 2, 2).eval()
    x = torch.randn(1, 30)
    with torch.no_grad():
        once = net(x, torch.ones(1, 30))
        later = torch.cat([torch.zeros(1, 50), x], dim=1)
        shown = torch.ones(1, 80)
        again = net(later, shown)[:, 50:]
    assert once.shape == again.shape  # the same net takes any length
    assert net.hidden.shape == (16,)


def test_the_same_arguments_give_the_same_file(tmp_path):
    digests = {pretrain(tmp_path / name, steps=8, seed=3, **TINY) for name in ("a", "b")}
    assert len(digests) == 1
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert pretrain(tmp_path / "c", steps=8, seed=4, **TINY) not in digests


def test_training_lowers_the_loss(tmp_path):
    losses = []
    pretrain(
        tmp_path / "a", steps=200, on_progress=lambda step, loss: losses.append(loss), **(TINY | {"batch_size": 16})
    )
    assert len(losses) == 100
    assert np.mean(losses[-30:]) < 0.93 * np.mean(losses[:10])


def test_embeddings_are_frozen_scaled_and_free_of_batches(file):
    encoder = SeriesEncoder(file)
    assert not any(p.requires_grad for p in encoder.net.parameters())
    x = np.random.default_rng(0).normal(size=(5, 90))
    x[2, 10:15] = np.nan
    found = encoder.embed(x)
    assert found.shape == (5, 90, 16)
    assert found.dtype == np.float64
    assert np.isfinite(found).all()
    np.testing.assert_allclose(encoder.embed(1e3 * x), found, atol=1e-5)
    np.testing.assert_allclose(encoder.embed(x[2:3]), found[2:3], atol=1e-5)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        np.testing.assert_array_equal(encoder.embed(x), found)
    finally:
        torch.set_num_threads(threads)


def test_themis_takes_the_file(file):
    x = np.sin(np.arange(300) / 6)
    x[100:110] = np.nan
    s = Themis(encoder=str(file), window=96).fit_score(x)
    assert s.shape == (300,)
    assert np.isfinite(s).all()


def test_files_that_are_no_encoder_are_told(file, tmp_path):
    bad = tmp_path / "bad.safetensors"
    with pytest.raises(ModelError, match="cannot be read"):
        SeriesEncoder(bad)
    bad.write_bytes(file.read_bytes()[:900])
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        SeriesEncoder(bad)
    with safe_open(str(file), "pt") as opened:
        header = json.loads(opened.metadata()["encoder"])
    weights = safetensors.load_file(file)
    safetensors.save_file(weights, bad)
    with pytest.raises(ModelError, match="was not written by"):
        SeriesEncoder(bad)
    for sizes in ({"width": 16}, {"width": 10**6, "layers": 1, "heads": 2}, [], {"width": 0, "layers": 1, "heads": 2}):
        safetensors.save_file(weights, bad, {"encoder": json.dumps(header | {"sizes": sizes})})
        with pytest.raises(ModelError, match="do not fit"):
            SeriesEncoder(bad)
    weights["head.bias"] = torch.zeros(5)
    safetensors.save_file(weights, bad, {"encoder": json.dumps(header)})
    with pytest.raises(ModelError, match="do not fit"):
        SeriesEncoder(bad)


def test_arguments_are_checked_and_the_command_speaks(tmp_path, capsys):
    with pytest.raises(ParameterError, match=r"multiple of 2 \* heads"):
        pretrain(tmp_path / "x", steps=1, **(TINY | {"width": 18}))
    with pytest.raises(ParameterError, match="length"):
        pretrain(tmp_path / "x", steps=1, **(TINY | {"length": 2_000}))
    with pytest.raises(DataError, match="does not exist"):
        pretrain(tmp_path / "no" / "x", steps=1, **TINY)
    assert not os.listdir(tmp_path)
    path = tmp_path / "made.safetensors"
    told = ["--steps", "2", "--n-kernels", "2", "--batch-size", "2", "--length", "32"]
    assert main([str(path), *told]) == 0
    assert "sha256" in capsys.readouterr().out
    assert SeriesEncoder(path).width == 96
    assert main([str(tmp_path / "no" / "x"), *told]) == 1
    assert "does not exist" in capsys.readouterr().err
