"""``skerry detect`` as a process: each kind of failure ends in one line, exit code 1, and nothing half-written."""

import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest

GOOD = "a,b,y\n" + "".join(f"{i % 7}.5,{(i * 37) % 11},{int(i == 5)}\n" for i in range(60))
MAIN = "from skerry.app.cli import main; main()"


def start(folder, *args, code=MAIN, **options):
    """Start the command in ``folder``, which also holds its temporary files."""
    environment = os.environ | {"TMPDIR": str(folder / "tmp"), "SKERRY_DEBUG": ""}
    (folder / "tmp").mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", code, "detect", *map(str, args), "--detector", "pca"],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        **{"stdout": subprocess.PIPE, "stdin": subprocess.DEVNULL} | options,
    )


def finish(process, data=None, timeout=120):
    out, error = process.communicate(data, timeout=timeout)
    return process.returncode, out, error.decode()


def one_line(code, error, message):
    assert code == 1, error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1, error
    assert error.startswith("skerry: error: ")
    assert message in error


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def good(tmp_path):
    (tmp_path / "good.csv").write_text(GOOD)
    return tmp_path


def test_damage_in_the_middle_of_a_stream(good):
    """The file opens well, and breaks when its last rows are read."""
    path = good / "late.parquet"
    rng = np.random.default_rng(0)
    pl.DataFrame({f"x{j}": rng.normal(size=5000) for j in range(3)}).write_parquet(path, row_group_size=1000)
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4 : len(data) * 3 // 4 + 64] = bytes(64)
    path.write_bytes(data)
    code, _, error = finish(start(good, "late.parquet", "--out", "s.csv"))
    one_line(code, error, "late.parquet")
    assert files(good) == ["good.csv", "late.parquet"]
    assert path.read_bytes() == data


def test_a_label_of_one_class_writes_nothing(good):
    (good / "one.csv").write_text(GOOD.replace(",1\n", ",0\n"))
    outputs = ("--out", "s.csv", "--report", "r.html", "--save-model", "m.skerry", "--json")
    code, out, error = finish(start(good, "one.csv", "--label", "y", *outputs))
    one_line(code, error, "one.csv: label column 'y' holds only the class 0")
    assert out == b""
    assert files(good) == ["good.csv", "one.csv"]


def test_the_table_that_is_read_is_never_replaced(good):
    code, _, error = finish(start(good, "good.csv", "--out", "./good.csv"))
    one_line(code, error, "would be replaced")
    assert (good / "good.csv").read_text() == GOOD


@pytest.mark.parametrize(
    ("option", "path"),
    [("--out", "s.parquet"), ("--report", "r.html"), ("--save-model", "m.skerry")],
)
def test_a_disk_that_fills_up(good, option, path):
    """The largest file that the process may write holds less than the output."""
    rng = np.random.default_rng(0)
    np.save(good / "t.npy", rng.normal(size=(20_000, 3)))
    (good / path).write_bytes(b"older")

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    code, _, error = finish(start(good, "t.npy", option, path, preexec_fn=limit))
    one_line(code, error, f"{path}: cannot be written")
    assert (good / path).read_bytes() == b"older"
    assert files(good) == sorted(["good.csv", path, "t.npy"])


def test_a_disk_too_full_to_hold_what_comes_on_stdin(good):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    code, _, error = finish(start(good, "-", stdin=subprocess.PIPE, preexec_fn=limit), (GOOD * 9).encode())
    one_line(code, error, "standard input: cannot be kept in the folder for temporary files")
    assert files(good) == ["good.csv"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("form", ["--json", "--explain"])
def test_a_full_disk_behind_stdout(good, form):
    with open("/dev/full", "wb") as full:
        code, _, error = finish(start(good, "good.csv", form, stdout=full))
    one_line(code, error, "No space left on device")


def test_a_device_is_not_replaced(good):
    (good / "link.csv").symlink_to("/dev/full")
    code, _, error = finish(start(good, "good.csv", "--out", "link.csv"))
    one_line(code, error, "link.csv: is not a regular file")
    assert os.path.exists("/dev/full")


def interrupted(code, error):
    assert code == 130, error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1, error


def test_an_interruption_while_stdin_is_read(good):
    process = start(good, "-", "--out", "s.csv", stdin=subprocess.PIPE)
    process.stdin.write(GOOD.encode())
    process.stdin.flush()
    for _ in range(600):  # until the first rows lie in the temporary file
        if list((good / "tmp").glob("*.csv")) or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    interrupted(*finish(process)[::2])
    assert files(good) == ["good.csv"]


def test_an_interruption_while_output_is_written(good):
    path = "s.parquet"
    (good / path).write_bytes(b"older")
    code = (
        "import os, signal, skerry.detect.tabular.row_writer as w\n"
        "write = w.RowWriter.write\n"
        "def slow(self, *args):\n"
        "    write(self, *args); os.kill(os.getpid(), signal.SIGINT)\n"
        "w.RowWriter.write = slow\n" + MAIN
    )
    interrupted(*finish(start(good, "good.csv", "--out", path, code=code))[::2])
    assert (good / path).read_bytes() == b"older"
    assert files(good) == sorted(["good.csv", path])


def test_a_threshold_out_of_range_is_wrong_usage(good):
    code, _, error = finish(start(good, "good.csv", "--threshold", "contamination:0.9"))
    assert code == 2
    assert "Traceback" not in error
    assert "contamination must lie in [0, 0.5]" in " ".join(error.replace("│", " ").split())
