"""Two processes train one model: they agree bit for bit, and resume together."""

import os
import socket
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="needs the extra 'deep'")
pytest.importorskip("accelerate", reason="needs the extra 'deep'")

import torch

if not torch.distributed.is_available():
    pytest.skip("torch was built without distributed", allow_module_level=True)

SCRIPT = """
import sys
import torch
from skerry.train.lab import LabConfig, train_lab
from skerry.train.lab_data import ByteWindows

rank, folder = sys.argv[1:]
config = LabConfig(dim=16, n_layers=1, steps=8, warmup=2, batch_size=4, optimizer="muon", norm="single")
task = ByteWindows(b"the skerry stands apart from the shore. " * 40, seq_len=12)
how = {"eval_every": 4, "eval_batches": 1, "log_every": 1, "threads": 1}
whole = train_lab(config, task, **how)
cut = train_lab(config, task, folder=folder, seconds=0, **how)
torch.distributed.barrier()
resumed = train_lab(config, task, folder=folder, **how)
assert cut.steps == 1 and resumed.steps == 8, (cut.steps, resumed.steps)
for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
    assert torch.equal(a, b)
    other = a.detach().clone()
    torch.distributed.broadcast(other, 0)
    assert torch.equal(a, other)
assert torch.distributed.get_world_size() == 2
torch.distributed.barrier()
torch.distributed.destroy_process_group()
print("done")
"""


def test_two_processes_agree_and_resume(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    running = []
    for rank in ("0", "1"):
        env = {**os.environ, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
               "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}  # fmt: skip
        command = [sys.executable, script, rank, str(tmp_path / "run")]
        running.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    for process in running:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err[-2000:]
        assert out.strip().endswith("done")
