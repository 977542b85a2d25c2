"""The modules under DDP: two processes agree bit for bit, and on equal batches do what one process does."""

import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")

import torch

if not torch.distributed.is_available():
    pytest.skip("torch was built without distributed", allow_module_level=True)

SCRIPT = """
import sys
import torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from skerry.train.nn import EmbeddingProjection, GatedAttention, GatedNorm, UnifiedNorm

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
result = {}
for name in ("alone", "same", "other"):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(13, 8), EmbeddingProjection(8), UnifiedNorm(8, 2, 3, ratio_warmup=3, outlier_filtration=True),
        GatedAttention(8, 2, causal=True), GatedNorm(8, rank=2), nn.Linear(8, 13),
    )
    net = model if name == "alone" else DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for k in range(6):
        draw = torch.Generator().manual_seed(100 * k + rank if name == "other" else k)
        x = torch.randint(13, (8, 6), generator=draw)
        optimizer.zero_grad()
        for _ in range(2):  # two micro-batches: each counts as a step of the norm
            nn.functional.cross_entropy(net(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten()).backward()
        optimizer.step()
    result |= {f"{name} {n}": t.detach().clone() for n, t in model.state_dict().items()}
torch.save(result, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def test_two_processes_agree_and_equal_one(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    running = [
        subprocess.Popen([sys.executable, script, rank, str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    for process in running:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    first, second = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (0, 1))
    own = ("running_var", "forward_buffer", "gradient_ema", "gradient_buffer", "skip_counter")
    for name, value in first.items():
        if not name.endswith(own):  # statistics are of each process's own tokens
            assert torch.equal(value, second[name]), name
        if name.startswith("same"):
            torch.testing.assert_close(value, first[name.replace("same", "alone")], atol=1e-5, rtol=1e-4, msg=name)
    assert first["same 2.iteration"] == 12 and (first["same 2.running_var"] != 1).all()
    assert not torch.equal(first["other 2.forward_buffer"], second["other 2.forward_buffer"])
