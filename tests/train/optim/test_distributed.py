"""Two processes under DDP reach the weights of one process, and agree with each other bit for bit."""

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
from skerry.train.optim import ROOT, Muon, split_params

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
result = {}
for name in ("Muon", "Muon distributed", "ROOT", "ROOT refreshed", "ROOT distributed"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8), nn.Linear(8, 8))
    model.append(nn.Linear(8, 11))
    matrices, rest = split_params(model)
    distribute = "distributed" in name
    if "Muon" in name:
        optimizer = Muon(matrices, adamw_params=rest, lr=0.02, distribute=distribute)
    else:
        refresh = 2 if name == "ROOT refreshed" else None
        more = {"refresh_every": refresh, "cache": f"{folder}/fits.json", "distribute": distribute}
        optimizer = ROOT(matrices, adamw_params=rest, lr=0.02, **more)
    net = DistributedDataParallel(model) if world > 1 else model
    for k in range(5):
        tokens = torch.randint(11, (16,), generator=torch.Generator().manual_seed(k))
        tokens = tokens.chunk(world)[rank]
        loss = nn.functional.cross_entropy(net(tokens), (3 * tokens + 1) % 11)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    result |= {f"{name} {n}": p.detach() for n, p in model.named_parameters()}
torch.save(result, f"{folder}/{rank}of{world}.pt")
if world > 1:
    dist.destroy_process_group()
"""


def test_two_processes_equal_one(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    running = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(world), str(tmp_path)], stderr=subprocess.PIPE, text=True
        )
        for rank, world in ((0, 1), (0, 2), (1, 2))
    ]
    for process in running:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    one, first, second = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in ("0of1", "0of2", "1of2"))
    for name, weight in one.items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], weight, atol=1e-4), name
        if "distributed" in name:  # the work was dealt out, the result is the same
            assert torch.allclose(first[name], first[name.replace(" distributed", "")], atol=1e-5), name
