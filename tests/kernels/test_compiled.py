"""A kernel runs whether or not it can be stored, and is stored where it can be."""

import importlib.util

import numba
import pytest

from skerry.kernels.compiled import njit

SOURCE = """
from skerry.kernels.compiled import njit

@njit(cache=True)
def thrice(x):
    return 3 * x
"""


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Import the kernel's module afresh, as another process would; it is stored beside its source."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")  # whatever NUMBA_CACHE_DIR says
    (tmp_path / "kernel_module.py").write_text(SOURCE)

    def load():
        spec = importlib.util.spec_from_file_location("kernel_module", tmp_path / "kernel_module.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.thrice

    load.stored = lambda suffix: sorted((tmp_path / "__pycache__").glob(f"*.{suffix}"))
    return load


def test_what_was_compiled_is_found_again(kernel):
    assert kernel()(2) == 6
    again = kernel()
    assert again(2) == 6
    assert sum(again.stats.cache_hits.values()) == 1


def test_a_full_disk_costs_the_cache_alone(kernel):
    resource = pytest.importorskip("resource", reason="needs a limit on the size of files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    function = kernel()
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        found = function(2), function(2.5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert found == (6, 7.5)
    assert not kernel.stored("nbc")
    assert kernel()(2) == 6  # and the next process stores it
    assert len(kernel.stored("nbc")) == 1


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("left", [0, 30])
def test_a_file_cut_short_is_compiled_anew(kernel, suffix, left):
    assert kernel()(2) == 6
    for path in kernel.stored(suffix):
        path.write_bytes(path.read_bytes()[:left])
    assert kernel()(2) == 6
    assert sum(map(len, ([*kernel.stored("nbi")], [*kernel.stored("nbc")]))) == 2
    again = kernel()
    assert again(2) == 6
    assert sum(again.stats.cache_hits.values()) == 1  # stored anew


def test_without_any_folder_to_write_to():
    scope = {"njit": njit}
    exec(compile("@njit(cache=True)\ndef twice(x):\n    return 2 * x\n", "<no file>", "exec"), scope)
    assert scope["twice"](4) == 8
    assert scope["twice"].stats.cache_path is None
