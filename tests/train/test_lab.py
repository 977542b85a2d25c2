"""A run is its configuration: the same digits again, also when it was stopped in between."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")
pytest.importorskip("accelerate", reason="needs the extra 'deep'")

import torch

from skerry.core.errors import ModelError, ParameterError
from skerry.train.lab import OPTIMIZERS, LabConfig, build_model, build_optimizer, train_lab
from skerry.train.lab_checkpoint import load_checkpoint, save_checkpoint
from skerry.train.lab_data import BackcopyTask, ByteWindows, Images

TEXT = b"the skerry stands apart from the shore, and the sea is around it. " * 30
TINY = LabConfig(dim=16, n_layers=1, n_heads=2, steps=12, warmup=3, batch_size=4)
OSP = {"optimizer": "muon", "norm": "single", "embedding_projection": True}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # so small that a second thread only waits
    yield
    torch.set_num_threads(before)


@pytest.fixture
def task():
    return ByteWindows(TEXT, seq_len=12)


def weights(run):
    return {k: v.clone() for k, v in run.model.state_dict().items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_run_has_the_digits_of_a_whole_one(optimizer, task, tmp_path):
    config = replace(TINY, optimizer=optimizer, lr=1e-2, schedule="cosine", norm="unified")
    whole = train_lab(config, task, eval_every=4, log_every=1, eval_batches=1)
    cut = train_lab(config, task, folder=tmp_path, eval_every=4, log_every=1, eval_batches=1, seconds=0)
    assert cut.steps == 1
    resumed = train_lab(config, task, folder=tmp_path, eval_every=4, log_every=1, eval_batches=1)
    assert resumed.steps == 12
    for (name, a), b in zip(weights(whole).items(), weights(resumed).values(), strict=True):
        assert torch.equal(a, b), name
    key = lambda run: [(r["step"], r["train loss"]) for r in run.history]  # noqa: E731
    assert key(whole) == key(resumed) and whole.metrics == resumed.metrics
    again = train_lab(config, task, folder=tmp_path, eval_every=4, eval_batches=1)  # nothing is left to do
    assert again.steps == 12 and again.metrics == resumed.metrics


def test_the_log_is_json_lines_and_the_checkpoint_no_pickle(task, tmp_path):
    run = train_lab(TINY, task, folder=tmp_path, eval_every=4, eval_batches=1)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 4, 8, 12] and rows[-1]["loss"] == run.metrics["loss"]
    assert rows[-1]["seconds"] > 0
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".jsonl", ".safetensors"]
    model = build_model(TINY, task)
    assert load_checkpoint(tmp_path, model) == 12
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), weights(run).values(), strict=True))


def test_damaged_or_foreign_checkpoints_are_refused(task, tmp_path):
    train_lab(TINY, task, folder=tmp_path, eval_batches=1)
    with pytest.raises(ModelError, match="another configuration"):
        train_lab(replace(TINY, lr=1.0), task, folder=tmp_path, eval_batches=1)
    with pytest.raises(ModelError, match="does not fit"):
        load_checkpoint(tmp_path, build_model(replace(TINY, dim=8), task))
    file = next(tmp_path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelError, match="damaged"):
        train_lab(TINY, task, folder=tmp_path, eval_batches=1)


def test_an_unfinished_checkpoint_leaves_the_one_before(task, tmp_path, monkeypatch):
    model = build_model(TINY, task)
    optimizer = build_optimizer(model, TINY)
    save_checkpoint(tmp_path, 5, model, optimizer, {})
    monkeypatch.setattr(json, "dumps", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 6, model, optimizer, {})
    monkeypatch.undo()
    assert load_checkpoint(tmp_path, model) == 5


def test_seeds_and_global_randomness(task):
    state = torch.random.get_rng_state()
    a, b, other = (build_model(replace(TINY, seed=s), task) for s in (0, 0, 1))
    assert torch.equal(a.embedding.weight, b.embedding.weight)
    assert not torch.equal(a.embedding.weight, other.embedding.weight)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_threads_are_put_back(task):
    train_lab(replace(TINY, steps=1), task, threads=2, eval_batches=1)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_parameter_is_in_one_group(optimizer, task):
    model = build_model(replace(TINY, **OSP), task)
    groups = build_optimizer(model, replace(TINY, **{**OSP, "optimizer": optimizer}, weight_decay=0.1)).param_groups
    found = [id(p) for g in groups for p in g["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters())
    assert {g["lr"] for g in groups} == {TINY.lr}


def test_embeddings_go_to_muon_only_in_the_control(task):
    model = build_model(replace(TINY, **OSP), task)

    def muon(name):
        groups = build_optimizer(model, replace(TINY, **{**OSP, "optimizer": name})).param_groups
        return {id(p) for g in groups if g["kind"] == "muon" for p in g["params"]}

    tables = {id(model.embedding.embedding.weight), id(model.position.weight), id(model.head.head.weight)}
    assert not tables & muon("muon") and tables <= muon("muon-everywhere")
    assert id(model.embedding.projection.weight) in muon("muon")


def test_rates():
    config = replace(TINY, lr=1.0, warmup=10, steps=110)
    assert config.rate(0) == pytest.approx(0.1) and config.rate(50) == 1.0 == config.rate(109)
    cosine = replace(config, schedule="cosine")
    assert cosine.rate(10) == pytest.approx(1) and cosine.rate(60) == pytest.approx(0.55)
    assert cosine.rate(110) == pytest.approx(0.1)
    trapezoid = replace(config, schedule="trapezoid")
    assert trapezoid.rate(80) == 1.0 and trapezoid.rate(110) == pytest.approx(0.1)
    assert trapezoid.rate(100) == pytest.approx(0.55)


def test_the_control_clips_the_stream(task):
    run = train_lab(replace(TINY, residual_clip=0.01), task, eval_batches=1)
    assert run.metrics["peak"] <= 0.01 + 1e-8


def test_images_and_backcopy_train():
    x = torch.randint(256, (32, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = Images((x, torch.arange(32) % 4), (x[:8], torch.arange(8) % 4), 4)
    run = train_lab(replace(TINY, batch_size=8), images, eval_batches=1)
    assert run.metrics["accuracy"] >= 0 and run.metrics["sink, best head"] > 0
    with pytest.raises(ParameterError, match="images"):
        build_model(replace(TINY, embedding_projection=True), images)
    run = train_lab(replace(TINY, steps=60, lr=1e-2), BackcopyTask(TEXT.decode(), seq_len=12), eval_batches=1)
    assert run.metrics["loss"] < run.history[0]["train loss"] - 0.3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"optimizer": "adam"}, "adamw"), ({"schedule": "linear"}, "schedule"), ({"steps": 0}, "steps=0"),
     ({"mixed_precision": "fp8"}, "mixed_precision")],
)  # fmt: skip
def test_wrong_configurations_are_named(wrong, said):
    with pytest.raises(ParameterError, match=said):
        replace(TINY, **wrong)


def test_an_unknown_device_is_named(task):
    with pytest.raises(ParameterError, match="device"):
        train_lab(TINY, task, device="tpu")
