"""``skerry detect - --follow`` as a user runs it."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

MAIN = "from skerry.app.cli import main; main()"


def lines(n=400):
    x = np.sin(np.arange(n) / 5) + 0.02 * np.random.default_rng(0).normal(size=n)
    x[300:304] += 3.0
    return ["t,x\n", *(f"{1_700_000_000 + i},{v:.4f}\n" for i, v in enumerate(x))]


def test_a_pipe_is_followed_and_resumed(skerry, tmp_path):
    command = ["detect", "-", "--kind", "series", "--follow", "--json", "--warmup", "120"]
    whole = skerry(*command, stdin="".join(lines()))
    assert whole.returncode == 0, whole.stderr
    events = [json.loads(line) for line in whole.stdout.splitlines()]
    assert {"alarm", "end"} <= {e["kind"] for e in events}
    command += ["--state", tmp_path / "state"]
    first = skerry(*command, stdin="".join(lines()[:303]))
    second = skerry(*command, stdin="".join(lines()))  # sent again from the start
    told = [json.loads(line) for done in (first, second) for line in done.stdout.splitlines()]
    assert [e for e in told if e["kind"] != "open"] == events


def test_one_point_a_cut_line_and_wrong_use(skerry):
    done = skerry("detect", "-", "--follow", stdin="t,x\n1700000000,1\n17000")
    assert done.returncode == 0
    assert "nothing was scored" in done.stderr
    assert "no line break" in done.stderr
    assert skerry("detect", "-", "--follow", "--kind", "table", stdin="").returncode == 2
    assert skerry("detect", "-", "--follow", "--by", "key", stdin="").returncode == 2
    assert skerry("detect", "-", "--follow", "--detector", "matrix-profile", stdin="").returncode == 2


@pytest.fixture
def start(tmp_path):
    """Start the command, its pipes open; end it after the test."""
    begun = []

    def run(*args, **pipes):
        process = subprocess.Popen(
            [sys.executable, "-c", MAIN, "detect", *map(str, args), "--kind", "series", "--follow", "--warmup", "120"],
            cwd=tmp_path,
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | pipes,
        )
        begun.append(process)
        return process

    yield run
    for process in begun:
        process.kill()
        process.communicate()


def told(process, n=1):
    """The next ``n`` lines of standard output."""
    return [process.stdout.readline().decode() for _ in range(n)]


def test_the_detector_that_follows_is_told(skerry):
    text = "".join(lines())
    done = skerry("detect", "-", "--follow", "--warmup", "120", stdin=text)
    assert "by the detector forecast" in done.stderr
    named = skerry("detect", "-", "--follow", "--warmup", "120", "--detector", "ensemble", stdin=text)
    assert named.returncode == 0
    assert "by the detector" not in named.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_state_and_nothing_is_lost_or_told_twice(start, skerry, tmp_path, number, code):
    whole = skerry("detect", "-", "--follow", "--json", "--warmup", "120", stdin="".join(lines()))
    process = start("-", "--json", "--state", "state")
    process.stdin.write("".join(lines()[:303]).encode())
    process.stdin.flush()
    first = told(process)  # the alarm has opened: the signal comes in the middle of the event
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"exit code {code}" in error.decode()
    assert "Traceback" not in error.decode()
    first += out.decode().splitlines()
    again = skerry("detect", "-", "--follow", "--json", "--warmup", "120", "--state", "state", stdin="".join(lines()))
    events = [json.loads(line) for line in [*first, *again.stdout.splitlines()]]
    assert [e for e in events if e["kind"] != "open"] == [json.loads(line) for line in whole.stdout.splitlines()]


def test_nobody_reads_any_more(start, skerry):
    process = start("-", "--json", "--state", "state")
    process.stdin.write("".join(lines()[:302]).encode())
    process.stdin.flush()
    first = told(process)
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert "standard output was closed: stopped; what was not told is in state" in process.stderr.read().decode()
    again = skerry("detect", "-", "--follow", "--json", "--warmup", "120", "--state", "state", stdin="".join(lines()))
    kinds = [json.loads(line)["kind"] for line in [*first, *again.stdout.splitlines()]]
    assert kinds[:2] == ["alarm", "end"]
    assert kinds.count("alarm") == kinds.count("end")


def test_a_growing_file_is_followed_by_name(start, skerry, tmp_path):
    path, rows = tmp_path / "sensor.csv", lines()
    path.write_text("".join(rows[:200]))
    process = start(path, "--json", "--state", "state")
    with path.open("a") as file:
        file.write("".join(rows[200:310]) + rows[310][:5])
    first = told(process)
    assert json.loads(first[0])["kind"] == "alarm"
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "state is in state" in error.decode()
    with path.open("a") as file:
        file.write(rows[310][5:] + "".join(rows[311:]))  # the line that was cut is completed
    process = start(path, "--json", "--state", "state")
    first += out.decode().splitlines() + told(process)
    path.rename(tmp_path / "sensor.csv.1")
    later = [f"{1_700_000_000 + i},{np.sin(i / 5) + 4 * (i in (450, 451)):.4f}\n" for i in range(400, 500)]
    path.write_text("t,x\n" + "".join(later))
    first += told(process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "replaced" in error.decode()
    assert "left out" not in error.decode()
    kinds = [(e["kind"], e["number"]) for e in map(json.loads, first) if e["kind"] != "open"]
    assert kinds == [("alarm", 1), ("end", 1), ("alarm", 2)]
    done = skerry("detect", tmp_path / "none.csv", "--follow")
    assert done.returncode == 1
    assert "cannot be read" in done.stderr
