import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.linear_model import LinearRegression

from skerry.core import persistence
from skerry.core.detector import Detector
from skerry.core.errors import DataError, ModelError
from skerry.core.persistence import load, save
from skerry.core.threshold import Conformal, ExtremeValue


def holder(**state):
    detector = Detector()
    detector.__dict__.update(state)
    return detector


def archive(path, header=None, raw=None, compress=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", compress) as z:
        z.writestr("skerry.json", raw if raw is not None else json.dumps(header))
        for name, data in members.items():
            z.writestr(name.replace("_", "") + ".npy", data)
    return path


def rooted(state, path, **members):
    root = {"t": "object", "module": "skerry.core.detector", "class": "Detector", "v": state}
    return archive(path, {"format": 1, "skerry": "0.1.0", "root": root}, **members)


def same(a, b):
    if isinstance(a, np.ndarray):
        assert type(b) is np.ndarray
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        if a.dtype == object:
            for x, y in zip(a.ravel(), b.ravel(), strict=True):
                same(x, y)
        else:
            np.testing.assert_array_equal(a, b)
        return
    assert type(a) is type(b)
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for k in a:
            same(a[k], b[k])
    elif isinstance(a, float | np.floating) and a != a:
        assert b != b
    else:
        assert a == b


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.floats(width=32).map(np.float32),
    st.integers(-128, 127).map(np.int8),
    st.booleans().map(np.bool_),
    hnp.arrays(
        st.sampled_from(["<f8", ">f4", "<i8", "|b1", "<U3", "<M8[s]", "<c16"]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    ),
)
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.integers(), st.text(max_size=3)), inner, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(trees)
def test_any_plain_state_survives(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("m") / "m.skerry"
    save(holder(state_=tree), path)
    same(tree, load(path).state_)


def test_nested_objects_object_arrays_orders_and_draws_survive(tmp_path):
    rng = np.random.RandomState(3)
    rng.normal(size=3)
    record = np.array([(1, 2.5)], dtype=[("left", "<i4"), ("cut", "<f8")])
    model = holder(
        inner_=holder(x_=1),
        rule_=Conformal(0.1),
        names_=np.array([["a", None]], dtype=object),
        f_=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        day_=np.datetime64("2020-01-02"),
        nodes_=record,
        rng_=rng,
    )
    back = load(save(model, tmp_path / "m"))
    assert isinstance(back.inner_, Detector)
    assert back.rule_ == Conformal(0.1)
    same(model.names_, back.names_)
    assert back.f_.flags.f_contiguous
    assert back.day_ == model.day_
    same(record, back.nodes_)
    assert back.rng_.normal() == rng.normal()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.random.default_rng(0), r"Detector\.x_ is a numpy Generator"),
        (LinearRegression(), r"LinearRegression, which cannot be saved"),
        (lambda: 0, r"function, which cannot be saved"),
        ({1, 2}, r"set, which cannot be saved"),
        (np.array([(None,)], dtype=[("a", object)]), "not of plain data"),
    ],
)
def test_what_is_not_data_is_refused_by_name_and_nothing_is_written(tmp_path, value, message):
    with pytest.raises(ModelError, match=message):
        save(holder(x_=value), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_foreign_roots_cycles_and_unwritable_paths(tmp_path):
    with pytest.raises(ModelError, match="only estimators of skerry"):
        save([1], tmp_path / "m")
    with pytest.raises(ModelError, match="cannot be saved"):
        save(LinearRegression(), tmp_path / "m")
    loop = []
    loop.append(loop)
    with pytest.raises(ModelError, match="refers to itself"):
        save(holder(x_=loop), tmp_path / "m")
    with pytest.raises(DataError, match="cannot be written"):
        save(holder(), tmp_path / "none" / "m")


def test_missing_truncated_and_foreign_files(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        load(tmp_path / "m")
    path = save(holder(x_=np.arange(100.0)), tmp_path / "m")
    whole = path.read_bytes()
    for cut in (0, 1, 30, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:cut])
        with pytest.raises(ModelError, match="not a whole model"):
            load(path)
    np.savez(tmp_path / "other.npz", X=np.eye(2))
    with pytest.raises(ModelError, match="not a whole model"):
        load(tmp_path / "other.npz")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_flipped_byte_never_raises_anything_but_model_error(tmp_path_factory, data):
    path = save(holder(x_=np.arange(4.0), rule_=ExtremeValue()), tmp_path_factory.mktemp("m") / "m")
    raw = bytearray(path.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(raw))
    try:
        load(path)
    except ModelError:
        pass


def test_versions(tmp_path):
    for fmt in (None, "1", True, 0):
        with pytest.raises(ModelError, match="not a model saved by skerry"):
            load(archive(tmp_path / "m", {"format": fmt, "root": 1}))
    with pytest.raises(ModelError, match=r"saved by a newer skerry \(9\.0\)"):
        load(archive(tmp_path / "m", {"format": 2, "skerry": "9.0", "root": 1}))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("skerry.__main__", "main"),
        ("skerry.core.persistence", "BaseEstimator"),
        ("skerry.core.persistence", "load"),
        ("skerry.core.detector", "__doc__"),
        ("skerry..os", "x"),
        ("skerryx.y", "Z"),
        ("skerry.core.detector", "Nothing"),
        ("skerry.core.errors", "DataError"),
    ],
)
def test_only_models_of_ours_are_built(tmp_path, module, name):
    root = {"t": "object", "module": module, "class": name, "v": {}}
    with pytest.raises(ModelError, match="names"):
        load(archive(tmp_path / "m", {"format": 1, "root": root}))


def npy(array, **options):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


def test_hostile_arrays(tmp_path):
    at = {"x_": {"t": "array", "v": 0}}
    with pytest.raises(ModelError, match="holds Python objects"):
        load(rooted(at, tmp_path / "m", _0=npy(np.array([{}], dtype=object), allow_pickle=True)))
    huge = npy(np.zeros(3)).replace(b"(3,)", b"(9" + b"9" * 14 + b",)")
    with pytest.raises(ModelError, match="not a whole model|declares"):
        load(rooted(at, tmp_path / "m", _0=huge))
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**15,)})
    with pytest.raises(ModelError, match="declares 8000000000000000 bytes"):
        load(rooted(at, tmp_path / "m", _0=file.getvalue()))
    with pytest.raises(ModelError, match="compressed"):
        load(rooted(at, tmp_path / "m", compress=zipfile.ZIP_DEFLATED, _0=npy(np.zeros(9))))


def test_hostile_trees(tmp_path, monkeypatch):
    node = 1
    for _ in range(100):
        node = {"t": "list", "v": [node]}
    with pytest.raises(ModelError, match="nested too deeply"):
        load(rooted({"x_": node}, tmp_path / "m"))
    with pytest.raises(ModelError, match="not a whole model"):
        load(archive(tmp_path / "m", raw="[" * 200_000))
    for state, message in [
        ({"__class__": 1}, "not attributes"),
        ({"fit": 1}, "covers a method"),
        ({"x_": {"t": "boo", "v": 1}}, "kind"),
        ({"x_": {"t": "scalar", "dtype": "O", "v": 1}}, "scalar of dtype"),
        ({"x_": {"t": "rng", "v": 1}}, "not a whole model"),
        ([], "not a whole model|not attributes"),
        (
            {"x_": {"t": "object", "module": "skerry.core.threshold", "class": "Auto", "v": {"a": 1}}},
            "has no a",
        ),
        (
            {
                "x_": {
                    "t": "object",
                    "module": "skerry.core.threshold",
                    "class": "Conformal",
                    "v": {"alpha": 7},
                }
            },
            "alpha",
        ),
    ]:
        with pytest.raises(ModelError, match=message):
            load(rooted(state, tmp_path / "m"))
    path = save(holder(x_=np.zeros(100)), tmp_path / "m")
    monkeypatch.setattr(persistence, "MAX_BYTES", 100)
    with pytest.raises(ModelError, match="declares more than"):
        load(path)
