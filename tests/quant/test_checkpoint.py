"""Our own layout, folders written whole or not at all, and files of others that must not be trusted."""

import json
import os
import struct

import pytest
import torch
from torch import nn

from skerry.core.errors import DataError, ModelError, ParameterError
from skerry.quant import checkpoint_files
from skerry.quant.activation import GroupDynamic, TensorStatic, TokenDynamic
from skerry.quant.checkpoint import load, save
from skerry.quant.formats.float4 import Float4
from skerry.quant.formats.float8 import Float8, Float8Token
from skerry.quant.formats.mixed_decomposition import MixedInt8, OutlierSplit
from skerry.quant.formats.outlier_victim import OutlierVictim, VictimStatic
from skerry.quant.formats.split import SplitGrid
from skerry.quant.formats.twin_log import TwinLog
from skerry.quant.linear import BlockRotation, InputAffine, QuantizedLinear
from skerry.quant.numerics import AffineGrid
from skerry.quant.parts import FloatTensor, LowRank, Solved, SparseColumns, SparseEntries
from skerry.quant.statistics import LayerStatistics

WIDTH, OUT = 64, 32


def weight(seed=0):
    return torch.randn(OUT, WIDTH, generator=torch.Generator().manual_seed(seed))


class Float:
    def quantize(self, W):
        return FloatTensor(W.bfloat16())


def one(form, activation=None, before=(), bias=True, **extras):
    solved = Solved(form.quantize(weight()), **extras)
    layer = QuantizedLinear(solved, activation, torch.arange(OUT) * 0.1 if bias else None, before)
    return nn.Sequential(nn.LayerNorm(WIDTH), layer, nn.Linear(OUT, 4)).eval()


def plain(bias=True):
    return nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, OUT, bias=bias), nn.Linear(OUT, 4))


def inputs():
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(3))
    x[:, 4] *= 20
    return x


some = torch.tensor([1, 7, 30], dtype=torch.int32)
sample = LayerStatistics.of(inputs(), {"sample", "range"})
CASES = {
    "int4 groups": one(AffineGrid(4, False, 32), GroupDynamic(4, 32)),
    "int4 columns": one(AffineGrid(4, axis=0, scale_dtype="bfloat16"), TokenDynamic(8, ratio=0.9)),
    "float": one(Float(), TensorStatic(8).calibrated(sample), bias=False),
    "float8": one(Float8(), Float8Token()),
    "nvfp4": one(Float4()),
    "mxfp4": one(Float4("mxfp4")),
    "olive": one(OutlierVictim(), VictimStatic().calibrated(sample)),
    "olive 8": one(OutlierVictim(8, ("int",), scale_dtype="bfloat16")),
    "twin log": one(TwinLog(3, group_size=32, scale_dtype="float16")),
    "llm.int8": one(MixedInt8(), OutlierSplit()),
    "llm.int8 static": one(MixedInt8("float"), OutlierSplit(mode="static", columns=(4,))),
    "split": one(SplitGrid(4)),
    "entries": one(AffineGrid(3), sparse=SparseEntries(some, some, torch.ones(3).bfloat16(), (OUT, WIDTH))),
    "columns": one(AffineGrid(3), sparse=SparseColumns(some, torch.ones(OUT, 3).bfloat16(), (OUT, WIDTH))),
    "low rank": one(AffineGrid(4), low_rank=LowRank(torch.ones(OUT, 2) * 0.1, torch.ones(2, WIDTH) * 0.1)),
    "affine": one(AffineGrid(8), TokenDynamic(8), (InputAffine(torch.full((WIDTH,), 2.0), torch.ones(WIDTH)),)),
    "rotations": one(
        AffineGrid(8),
        before=(BlockRotation(16), BlockRotation(8, torch.eye(8), torch.randperm(WIDTH))),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_part_survives(case, tmp_path):
    model = CASES[case]
    facts = save(model, tmp_path / "out")
    assert facts["layout"] == "skerry-v1" and facts["layers"] == 1
    back = load(tmp_path / "out", plain(model[1].bias is not None))
    assert torch.equal(back(inputs()), model(inputs()))
    assert back[1].activation == model[1].activation
    assert not any(p.requires_grad for p in back.parameters())
    floats = sum(t.numel() * t.element_size() for k, t in model.state_dict().items() if not k.startswith("1."))
    if case not in ("entries", "columns", "split"):  # index types and part numbers are counted as packed there
        assert facts["bytes"] == model[1].nbytes + floats


def sharing(downs, rank=2):
    """Layers with branches that three of them share, by the first halves they have."""
    branches = [LowRank(torch.randn(OUT, rank), down.clone(), shared_by=3) for down in downs]
    solved = [Solved(AffineGrid(4).quantize(weight(i)), low_rank=branch) for i, branch in enumerate(branches)]
    return nn.Sequential(*map(QuantizedLinear, solved)).eval()


def test_a_shared_half_is_written_once(tmp_path):
    a, b = torch.randn(2, 2, WIDTH)
    model = sharing([a, b, a, a, b, b, a, a, a])  # the last three are another group of equal values
    told = save(model, tmp_path / "out")
    written = [k for k in checkpoint_files.ShardReader(tmp_path / "out").names() if k.endswith("low_rank.down")]
    assert written == ["0.low_rank.down", "1.low_rank.down", "6.low_rank.down"]
    assert told["bytes"] == pytest.approx(sum(layer.nbytes for layer in model), abs=len(model))
    back = load(tmp_path / "out", nn.Sequential(*(nn.Linear(WIDTH, OUT, bias=False) for _ in model)))
    halves = [layer.solved.low_rank for layer in back]
    assert all(
        torch.equal(h.down, m.solved.low_rank.down) and h.shared_by == 3 for h, m in zip(halves, model, strict=True)
    )
    assert halves[0].down is halves[2].down and halves[0].down is not halves[6].down
    again = save(back, tmp_path / "again")
    assert again["bytes"] == told["bytes"]
    for file in ("model.safetensors", "skerry.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


@pytest.mark.parametrize(
    "lie",
    [{"down": "7", "shared_by": 3}, {"down": 1, "shared_by": 3}, {"shared_by": 0}, {"shared_by": "3"}, {"down": "0"}],
)
def test_lies_about_a_shared_half(tmp_path, lie):
    save(sharing([torch.ones(2, WIDTH)] * 3), tmp_path / "out")
    edit(tmp_path / "out", lambda data: data["layers"]["1"].update(low_rank=lie))
    with pytest.raises(ModelError, match="out"):
        load(tmp_path / "out", nn.Sequential(*(nn.Linear(WIDTH, OUT, bias=False) for _ in range(3))))


def test_shards_and_small_limits(tmp_path):
    model = CASES["int4 groups"]
    save(model, tmp_path / "out", shard_bytes=200)
    files = sorted(f.name for f in (tmp_path / "out").iterdir())
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {f for f in files if f.endswith(".safetensors")}
    assert torch.equal(load(tmp_path / "out", plain())(inputs()), model(inputs()))


def test_nothing_is_overwritten_and_nothing_left_behind(tmp_path, monkeypatch):
    model = CASES["int4 groups"]
    (tmp_path / "out").mkdir()
    save(model, tmp_path / "out")
    with pytest.raises(DataError, match="exists already"):
        save(model, tmp_path / "out")
    with pytest.raises(ParameterError, match="layout"):
        save(model, tmp_path / "new", layout="onnx")
    with pytest.raises(ModelError, match="no quantized layer"):
        save(plain(), tmp_path / "new")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left"):
        save(model, tmp_path / "new")
    monkeypatch.undo()
    monkeypatch.setattr("skerry.quant.checkpoint._check", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        save(model, tmp_path / "new")
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_what_was_written_wrongly_is_noticed(tmp_path, monkeypatch):
    real = checkpoint_files.ShardWriter.add

    def flip(self, name, tensor):
        real(self, name, tensor ^ 1 if name.endswith("packed") else tensor)

    monkeypatch.setattr(checkpoint_files.ShardWriter, "add", flip)
    with pytest.raises(ModelError, match=r"1\.weight\.packed did not survive"):
        save(CASES["int4 groups"], tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def folder(tmp_path):
    save(CASES["columns"], tmp_path / "out")
    return tmp_path / "out"


def edit(folder, change):
    data = json.loads((folder / "skerry.json").read_text())
    change(data)
    (folder / "skerry.json").write_text(json.dumps(data))


def refused(folder, match, model=None):
    with pytest.raises(ModelError, match=match) as error:
        load(folder, plain() if model is None else model)
    assert str(folder) in str(error.value)


def test_truncated_and_foreign_weights(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (
        whole[: len(whole) // 2],
        whole[:5],
        b"",
        struct.pack("<Q", 2**60) + whole[8:],
        b"\x80\x04pickle" * 9,
    ):
        path.write_bytes(damaged)
        refused(folder, r"model\.safetensors: is damaged")
    path.unlink()
    refused(folder, "holds no weights")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    refused(folder, r"pytorch_model\.bin: weights in a pickle")
    with pytest.raises(DataError, match="no such folder"):
        load(folder / "absent")


LIES = {
    "unknown weights": (lambda d: d["layers"]["1"]["weight"].update(kind="builtins.eval"), "unknown kind"),
    "unknown sparse": (lambda d: d["layers"]["1"].update(sparse="bitmask"), "unknown kind"),
    "unknown change": (lambda d: d["layers"]["1"].update(before=[{"kind": "exec"}]), "unknown kind"),
    "unknown quantizer": (lambda d: d["layers"]["1"].update(activation={"part": "os.system"}), "unknown part"),
    "no quantizer": (lambda d: d["layers"]["1"].update(activation={"part": "GPTQ"}), "unknown kind"),
    "setting": (lambda d: d["layers"]["1"]["weight"]["grid"].update(secret=1), "cannot be read"),
    "bits": (lambda d: d["layers"]["1"]["weight"]["grid"].update(bits=77), "bits must be"),
    "absurd size": (lambda d: d["layers"]["1"]["weight"].update(shape=[2**40, 2**40]), "1"),
    "other shape": (lambda d: d["layers"]["1"]["weight"].update(shape=[OUT, WIDTH - 8]), "1"),
    "format": (lambda d: d.update(format="skerry-v9"), "unknown"),
    "no layers": (lambda d: d.update(layers=[1]), "no 'layers'"),
    "other layer": (lambda d: d["layers"].update({"9": d["layers"].pop("1")}), "9"),
    "no entry": (lambda d: d["layers"].update({"1": None}), "1"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_in_the_map(folder, lie):
    change, match = LIES[lie]
    edit(folder, change)
    refused(folder, match)


def test_sparse_places_outside_the_weight(tmp_path):
    bad = torch.tensor([1, 7, 99], dtype=torch.int32)
    layer = CASES["columns"][1]
    solved = Solved(layer.solved.weight, sparse=SparseColumns(bad, layer.solved.sparse.values, (OUT, WIDTH)))
    model = nn.Sequential(nn.LayerNorm(WIDTH), QuantizedLinear(solved), nn.Linear(OUT, 4))
    with pytest.raises(ModelError, match="points outside"):
        save(model, tmp_path / "out")  # already when it is read back


def test_descriptions_that_are_none(folder):
    for text in ("", "[", "[]", "\xff", "{" * 100_000, "[" * 100_000):
        (folder / "skerry.json").write_text(text)
        refused(folder, r"skerry\.json")
    with (folder / "skerry.json").open("wb") as file:
        file.truncate(checkpoint_files.JSON_LIMIT + 1)
    refused(folder, "too many")


def test_code_is_refused(folder):
    for key in ("auto_map", "trust_remote_code"):
        (folder / "config.json").write_text(json.dumps({key: {"AutoModel": "modeling.Evil"}}))
        refused(folder, "run code")
    (folder / "config.json").write_text(json.dumps({"architectures": ["Trainer"]}))
    with pytest.raises(ModelError, match="no model class"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match="give the float model"):
        load(folder)


def test_a_model_of_another_shape(folder):
    refused(folder, "holds", nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(8, 8), nn.Linear(OUT, 4)))
    refused(folder, "has not", nn.Sequential(nn.LayerNorm(WIDTH)))
    refused(
        folder, r"2\.weight has shape", nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, OUT), nn.Linear(OUT, 5))
    )


def test_an_index_that_points_elsewhere(tmp_path):
    save(CASES["int4 groups"], tmp_path / "out", shard_bytes=200)
    path = tmp_path / "out" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    for file in ("../../secret.safetensors", "/etc/passwd", "weights.bin"):
        name = next(iter(index["weight_map"]))
        path.write_text(json.dumps({"weight_map": index["weight_map"] | {name: file}}))
        refused(tmp_path / "out", "no safetensors file of this folder")
    path.write_text(json.dumps({"weight_map": index["weight_map"] | {"more": "absent.safetensors"}}))
    refused(tmp_path / "out", "is missing")
    path.write_text(
        json.dumps({"weight_map": index["weight_map"] | {"more": next(iter(index["weight_map"].values()))}})
    )
    refused(tmp_path / "out", "the index promises")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c.update(quant_method="awq"), "cannot be read here"),
        (lambda c: c.update(quant_method="gptq"), "no layer has a qweight"),
        (lambda c: c.pop("config_groups"), "config_groups"),
        (lambda c: c["config_groups"]["group_0"].update(format="sparse-bitmask"), "not one that can be read"),
        (lambda c: c["config_groups"]["group_0"]["weights"].update(num_bits=77), "weight_shape"),
        (lambda c: c["config_groups"]["group_0"]["weights"].update(num_bits="4"), "1"),
        (lambda c: c["config_groups"]["group_0"]["weights"].update(group_size=7), "divide"),
        (lambda c: c["config_groups"]["group_0"]["weights"].update(strategy="block"), "strategy"),
        (lambda c: c["config_groups"]["group_0"].update(input_activations={"num_bits": 8}), "inputs of 1"),
        (lambda c: c["config_groups"].update(a={"targets": ["re:(a+)+(b+)+(c*)*"], "weights": {}}), "intricate"),
    ],
)
def test_lies_in_a_configuration_of_others(tmp_path, change, match):
    from skerry.quant.checkpoint_compressed import layer_tensors, quantization_config, scheme_of

    layer = CASES["entries"][1]
    solved = Solved(AffineGrid(4, group_size=32).quantize(weight()))
    config = quantization_config({"1": scheme_of(solved, None)}, [])
    with checkpoint_files.new_folder(tmp_path / "out") as folder:
        writer = checkpoint_files.ShardWriter(folder)
        for key, tensor in layer_tensors(solved.weight, "pack-quantized").items():
            writer.add(f"1.{key}", tensor)
        for i in (0, 2):
            for key, tensor in plain()[i].state_dict().items():
                writer.add(f"{i}.{key}", tensor)
        writer.finish()
        (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    assert torch.equal(load(tmp_path / "out", plain(False))[1].solved.weight.codes, solved.weight.codes)
    change(config)
    (tmp_path / "out" / "config.json").write_text(json.dumps({"quantization_config": config}))
    refused(tmp_path / "out", match, plain(False))
    assert layer is not None
