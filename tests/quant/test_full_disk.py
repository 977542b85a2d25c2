"""A disk without room: saving, spilling and resuming end in a sentence, and nothing half-written is left."""

import os
import subprocess
import sys
import textwrap

import pytest

resource = pytest.importorskip("resource", reason="this system has no limits of a process")

SCRIPT = """
import resource, signal, sys
from pathlib import Path
import torch
from skerry.core.errors import DataError
from skerry.quant.api import quantize
from skerry.quant.checkpoint import save
from skerry.quant.streams import HiddenStates

torch.set_num_threads(1)
place = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing more than the limit then fails as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Linear(256, 16)).eval()
x = torch.randn(64, 256)


def told(call):
    try:
        call()
    except DataError as error:
        print(error)
    else:
        raise SystemExit("it went through")


told(lambda: save(quantize(model, "rtn", "w8a16"), place / "out"))
told(lambda: quantize(model, "rtn", "w8a16", work_dir=place / "work"))
states = HiddenStates(limit=0, folder=place / "scratch")
told(lambda: states.append(x))
states.close()
save(quantize(model[1:], "rtn", "w8a16"), place / "small")  # what fits is written as ever
"""


def test_no_room(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr + done.stdout
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all("File too large" in line for line in lines), lines
    assert str(tmp_path / "out") in lines[0] and "nothing was changed" in lines[0]
    assert "scratch" in lines[2] and "MiB of hidden states" in lines[2]
    left = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert [f for f in left if not f.startswith("small/")] == []
    assert {"small/model.safetensors", "small/skerry.json"} <= set(left)
