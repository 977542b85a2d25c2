"""Models larger than memory: the same result as in memory, and a peak of about one block."""

import json
import os
import subprocess
import sys

import pytest
import torch

import skerry.quant as quant
from skerry.core.errors import DataError, ModelError
from skerry.quant.checkpoint import save
from skerry.quant.engine import output_of, quantize_model
from skerry.quant.offload import StoredLinear, is_offloaded, load_offloaded
from skerry.quant.recipes import make_recipe


@pytest.fixture
def saved(tiny, tmp_path):
    """``saved(family)``: the folder of a tiny model, in several files."""

    def write(family):
        folder = tmp_path / family
        if not folder.exists():
            tiny(family, blocks=3).save_pretrained(folder, max_shard_size="20KB")
        return folder

    return write


def assert_same_files(a, b):
    for file in sorted(a.iterdir()):
        assert file.read_bytes() == (b / file.name).read_bytes(), file.name


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "bert", "vit"])
@pytest.mark.parametrize(("name", "bits"), [("gptq", "w4a16"), ("outliertune", "w8a8")])
def test_as_in_memory(family, name, bits, saved, inputs, tmp_path):
    folder, batches = saved(family), inputs(family)
    recipe = make_recipe(name, bits)
    kind = type(load_offloaded(folder))
    whole, _ = quantize_model(kind.from_pretrained(folder).eval(), recipe, calibration=batches)
    model = load_offloaded(folder)
    assert is_offloaded(model) and any(p.is_meta for p in model.parameters())
    found, report = quantize_model(model, recipe, calibration=batches, inplace=True, work_dir=tmp_path / "work")
    assert found is model and not is_offloaded(found) and not any(p.is_meta for p in found.parameters())
    assert sum(isinstance(m, StoredLinear) for m in found.modules()) == len(report.layers)
    with torch.no_grad():
        torch.testing.assert_close(output_of(found(batches[0])), output_of(whole(batches[0])))
    for model, where in ((whole, "a"), (found, "b")):
        save(model, tmp_path / where, layout="skerry-v1", shard_bytes=2**12)
    assert_same_files(tmp_path / "a", tmp_path / "b")


def test_interrupted_and_offloaded(saved, inputs, tmp_path):
    folder, batches, recipe = saved("llama"), inputs("llama"), make_recipe("gptq", "w4a16")

    def stop(what, done, total):
        if done == 2:
            raise KeyboardInterrupt

    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        quantize_model(load_offloaded(folder), recipe, calibration=batches, inplace=True, work_dir=work, progress=stop)
    found, report = quantize_model(load_offloaded(folder), recipe, calibration=batches, inplace=True, work_dir=work)
    assert any("resumed: 2 of 3" in note for note in report.notes)
    kind = type(found)
    save(found, tmp_path / "a")
    save(quantize_model(kind.from_pretrained(folder), recipe, calibration=batches)[0], tmp_path / "b")
    assert_same_files(tmp_path / "a", tmp_path / "b")


def test_the_call_keeps_the_folder_that_the_model_reads(saved, inputs, tmp_path):
    model = load_offloaded(saved("opt"))
    with pytest.raises(ModelError, match=r"inplace=True and a work_dir"):
        quant.quantize(model, "rtn", "w8a16")
    found = quant.quantize(model, "rtn", "w8a16", inplace=True, work_dir=tmp_path / "work")
    assert (tmp_path / "work").is_dir()
    with torch.no_grad():
        before = found(inputs("opt")[0]).logits
        quant.use_kernels(found)
        after = found(inputs("opt")[0]).logits
    assert float((before - after).norm() / before.norm()) < 0.05


def test_what_needs_the_whole_model_is_refused(saved, inputs, tmp_path):
    with pytest.raises(ModelError, match="whole model in memory"):
        quant.quantize(
            load_offloaded(saved("llama")), "quarot", "w4a4", inputs("llama"), inplace=True, work_dir=tmp_path / "w"
        )


def test_damaged_folders(saved, tmp_path):
    folder = saved("llama")
    with pytest.raises(DataError, match="no such folder"):
        load_offloaded(tmp_path / "none")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(ModelError, match="code of its own"):
        load_offloaded(folder)
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Evil"]}))
    with pytest.raises(ModelError, match="names no model class"):
        load_offloaded(folder)
    (folder / "config.json").write_text(json.dumps(config))
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ModelError, match="truncated"):
        load_offloaded(folder)
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    with pytest.raises(DataError, match="no safetensors"):
        load_offloaded(folder)


PEAK = """
import json, sys
import torch
from transformers import LlamaForCausalLM
from skerry.quant import quantize, save
from skerry.quant.offload import load_offloaded

torch.set_num_threads(1)
folder, work, out = sys.argv[1:]


def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024


batches = [torch.randint(0, 64, (2, 16)) for _ in range(2)]
quantize(torch.nn.Sequential(torch.nn.Linear(64, 64)), "smoothquant", "w8a8", torch.randn(4, 64))
LlamaForCausalLM
before = peak()
model = load_offloaded(folder)
found = quantize(model, "rtn", "w8a8", batches, inplace=True, work_dir=work)
middle = peak()
save(found, out, shard_bytes=2**24)
print(json.dumps([before, middle - before, peak() - before]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's account of a process's peak memory")
def test_the_peak_is_about_one_block(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=512, intermediate_size=1024, num_hidden_layers=16, num_attention_heads=8
    )
    model = LlamaForCausalLM(config)
    block = sum(p.numel() * p.element_size() for p in model.model.layers[0].parameters()) / 2**20
    model.save_pretrained(tmp_path / "model", max_shard_size="50MB")
    del model
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *map(str, (tmp_path / "model", tmp_path / "work", tmp_path / "out"))],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"},  # what is freed is given back
    )
    assert done.returncode == 0, done.stderr
    base, quantizing, saving = json.loads(done.stdout.splitlines()[-1])
    print(f"block {block:.1f} MiB, base {base:.0f}, quantizing +{quantizing:.1f}, saving +{saving:.1f}")
    # the block, float32 work on a layer, and the code that is loaded on the way
    assert quantizing < 8 * block
    assert saving < 12 * block
