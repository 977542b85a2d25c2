"""The study of filter pruning runs at a tiny size; its figures, splits and claim come from what it measured."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch
from sklearn.metrics import balanced_accuracy_score
from torch import nn

from skerry.bench import beta_rank as study
from skerry.bench.beta_rank_official import official_scores
from skerry.bench.long_tail_images import _stratified, fashion_long_tail, wafer_maps
from skerry.core.errors import DataError
from skerry.deep.convnets import CifarResNet
from skerry.rank.filters import CRITERIA

TINY = {
    "settings": {(study.FASHION, "cnn"): (1, ("half the FLOPs", "half the filters"))},
    "head": 50,
    "wafers": 60,
    "test": 6,
    "epochs": 1,
    "tuning": 1,
    "draws": 2,
    "jobs": 1,
}


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    (tmp_path / "wafer").mkdir()
    y, y_test = np.repeat(np.arange(10), 70), np.repeat(np.arange(10), 8)

    def pictures(labels):
        return (rng.integers(0, 40, (len(labels), 28, 28)) + 20 * labels[:, None, None]).astype(np.uint8)

    np.savez(
        tmp_path / "images" / "fashion_mnist.npz",
        x_train=pictures(y),
        y_train=y,
        x_test=pictures(y_test),
        y_test=y_test,
    )
    for name in ("train", "test"):
        y = np.repeat(np.arange(3), (60, 30, 6))
        shape = rng.integers(20, 40, (len(y), 2)).astype(np.uint8)
        cells = rng.integers(0, 3, int(shape.astype(int).prod(1).sum())).astype(np.uint8)
        np.savez(tmp_path / "wafer" / f"wm811k_{name}.npz", cells=cells, shape=shape, y=y)
    return tmp_path


def test_quick_path(monkeypatch, data):
    monkeypatch.setitem(study.SIZES, "quick", TINY)
    lines, threads = [], torch.get_num_threads()
    result = study.run(True, data, 0, lines.append)
    rows = {r["method"]: r for r in result["table"]}
    assert set(rows) == {*study.METHODS, study.WHOLE} and len(lines) == 1
    assert {o["criterion"] for o in study.METHODS.values() if o} == set(CRITERIA)
    assert all(0 <= r[k] <= 1 for r in rows.values() for k in (*study.FIGURES, "before tuning"))
    assert rows["L1"]["minus L1"] == 0
    assert f"{rows[study.BETA]['balanced accuracy']:.3f}" in result["claim"]
    cells = [t for name, t in result["tables"].items() if name.startswith(study.FASHION)]
    assert len(cells) == 2 and all(len(t) == len(study.METHODS) + 1 for t in cells)
    removed = {r["method"]: r["FLOPs removed"] for r in cells[0]}
    assert removed.pop(study.WHOLE) == 0 and all(0.5 <= v < 0.6 for v in removed.values())
    assert len({r["FLOPs removed"] for r in cells[1]}) == 2  # with rates every method removes as much
    overall = np.mean([r["balanced accuracy"] for t in cells for r in t if r["method"] == "HRank"])
    assert rows["HRank"]["balanced accuracy"] == pytest.approx(overall)
    stability = {r.pop("method"): r for r in result["tables"][next(k for k in result["tables"] if "Stab" in k)]}
    assert "random" not in stability and all(0 < v <= 1 for r in stability.values() for v in r.values())
    assert {r["met"] for r in result["tables"]["Expectations"]} <= {"yes", "no"}
    assert torch.get_num_threads() == threads
    again = study.study_one(study.FASHION, "cnn", 0, ("half the filters",), TINY, data)
    found = {r["method"]: r["balanced accuracy"] for r in cells[1]}
    assert {r["method"]: r["after"]["balanced accuracy"] for r in again["rows"]} == found


def test_the_gap_is_paired_by_network():
    def unit(a, b):
        return {
            "rows": [
                {"level": level, "method": m, "after": {"balanced accuracy": v + k}}
                for m, v in (("a", a), ("b", b))
                for k, level in enumerate(("x", "y"))
            ]
        }

    units = [unit(0.5, 0.4), unit(0.9, 0.6)]
    assert study._gap(units, "a", "b") == pytest.approx((0.2, 0.1))
    assert study._gap(units[:1], "b", "a", "y")[0] == pytest.approx(-0.1)
    assert study._told(0.2, 0.05).endswith("(above)") and study._told(-0.2, 0.05).endswith("(below)")
    assert study._told(0.1, 0.06).endswith("(not separated)")
    assert study._told(0.1, float("nan")).endswith("(not separated)")


def test_figures_are_of_the_whole_part_at_once():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 3, bias=False))
    nn.init.eye_(net[1].weight)
    y = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    found = np.array([0, 0, 0, 1, 1, 1, 0, 2])
    x = torch.eye(3)[found].view(8, 3, 1, 1)
    figures = study.measure(net, (x, y), np.array([40, 20, 10]))
    assert figures["balanced accuracy"] == pytest.approx(balanced_accuracy_score(y, found))
    assert figures["rare recall"] == 0.5 and figures["accuracy"] == 0.75
    assert figures["macro-F1"] == pytest.approx(np.mean([3 / 4, 4 / 5, 2 / 3]))


def test_the_long_tail_falls_to_a_fiftieth_and_shares_no_image(data):
    images = fashion_long_tail(data, np.random.default_rng(1), head=50, n_test=6)
    counts = np.bincount(images.train[1])
    assert counts.max() == 50 and counts.min() == 1 and len(counts) == images.n_classes == 10
    assert (np.bincount(images.val[1]) == np.maximum(4, counts // 4)).all()
    assert (np.bincount(images.test[1]) == 6).all()
    pixels = {p.numpy().tobytes() for part in (images.train, images.val) for p in part[0]}
    assert len(pixels) == len(images.train[1]) + len(images.val[1])
    assert abs(float(images.train[0].mean())) < 1e-5 and float(images.train[0].std()) == pytest.approx(1, abs=1e-3)


def test_wafer_maps_keep_their_shares(data):
    images = wafer_maps(data, np.random.default_rng(1), n_train=40, n_test=10)
    assert images.train[0].shape[1:] == images.test[0].shape[1:] == (2, 28, 28)
    assert np.bincount(images.train[1]).tolist() == [25, 13, 3]
    assert np.bincount(images.test[1]).tolist() == [10, 10, 6]
    parts = _stratified(np.repeat(np.arange(3), (50, 9, 3)), (0.3, 0.01, 0.2), np.random.default_rng(0))
    rows = np.concatenate(parts)
    assert len(np.unique(rows)) == len(rows) and [len(p) for p in parts] == [15 + 3 + 1, 1 + 1 + 1, 10 + 1 + 1]


def test_absent_files_are_named(tmp_path):
    with pytest.raises(DataError, match="fashion_mnist"):
        fashion_long_tail(tmp_path, np.random.default_rng(0), head=10, n_test=5)
    with pytest.raises(DataError, match="wm811k_train"):
        wafer_maps(tmp_path, np.random.default_rng(0), n_train=10, n_test=5)


def test_official_windows_run_over_channels_and_rows():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 2, 2)
    net, x = nn.Sequential(conv), torch.randn(7, 3, 5, 5)
    spread = net(x).detach().double().std(0, correction=0).numpy()
    data = x.double().numpy()
    expected = np.zeros(2)
    for k in range(2):  # of 4 x 4 positions, those of row 3 have no channel to read
        ratios = [spread[k, u, v] / data[:, u : u + 2, v : v + 2].std() for u in range(3) for v in range(4)]
        expected[k] = np.abs(conv.weight.detach().numpy()[k]).sum() * np.mean(ratios)
    np.testing.assert_allclose(official_scores(net, x)["0"], expected, rtol=1e-5)
    net = CifarResNet(8, 2, 1, width=4)
    assert all(np.isfinite(v).all() for v in official_scores(net, torch.randn(3, 1, 8, 8)).values())


def test_a_balanced_draw_has_all_classes(data):
    images = fashion_long_tail(data, np.random.default_rng(1), head=50, n_test=6)
    x, y = study._draw(images, np.random.default_rng(0), balanced=True)
    assert len(x) == len(y) and np.bincount(y).max() == study.CALIBRATION // 10 and len(np.unique(y)) == 10
    x, y = study._draw(images, np.random.default_rng(0), balanced=False)
    assert len(y) == study.CALIBRATION
