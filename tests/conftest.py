"""Shared by all tests: where the data sets lie, and the command as a subprocess."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples on every run and machine: a gate that fails by luck teaches nobody.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SKERRY_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def adbench():
    """The folder of labelled tables."""
    if not (DATA / "adbench").is_dir():
        pytest.skip(f"no data at {DATA}: set SKERRY_DATA")
    return DATA / "adbench"


@pytest.fixture
def skerry(tmp_path):
    """Run ``skerry ARGS`` in a temporary folder."""

    def run(*args, stdin=None, cwd=tmp_path, timeout=240):
        return subprocess.run(
            [sys.executable, "-c", "from skerry.app.cli import main; main()", *map(str, args)],
            capture_output=True,
            text=not isinstance(stdin, bytes),
            input=stdin,
            cwd=cwd,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def payments():
    return ROOT / "examples" / "payments.csv"
