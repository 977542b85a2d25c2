"""Series as bad as they come, through the command: documented behaviour or one line, never a traceback."""

import datetime as dt
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

MAIN = "from skerry.app.cli import main; main()"
START = dt.datetime(2026, 3, 28, 12)


def stamps(n, start=START, minutes=10):
    return [f"{start + dt.timedelta(minutes=minutes * i):%Y-%m-%d %H:%M}" for i in range(n)]


def wave(n, seed=0):
    return np.sin(np.arange(n) / 6) + 0.05 * np.random.default_rng(seed).normal(size=n)


def table(times, **channels):
    rows = zip(times, *channels.values(), strict=True)
    cells = [",".join("" if c != c else str(c) for c in row) for row in rows]
    return "\n".join([",".join(["t", *channels]), *cells]) + "\n"


def odd(n=600):
    x = wave(n).round(4)
    x[400:406] += 3.0
    return x


def spring():
    """The local clock of Paris: 02:00 to 03:00 does not exist on 29 March 2026."""
    days = [s for s in stamps(600) if not "2026-03-29 02" <= s < "2026-03-29 03"]
    return table(days, x=odd()[: len(days)])


def autumn():
    """02:00 to 03:00 comes twice on 25 October 2026."""
    days = stamps(600, dt.datetime(2026, 10, 24, 12))
    at = days.index("2026-10-25 03:00")
    days = [*days[:at], *days[at - 6 : at], *days[at:]][:600]
    return table(days, x=odd())


def set_back():
    days = stamps(600)
    return table([*days[:300], *days[200:500]], x=odd())


def gap():
    days = stamps(300) + stamps(300, START + dt.timedelta(days=30))
    return table(days, x=odd())


FILES = {  # what the table is, the exit code, a word of what is told
    "one point": (table(stamps(1), x=[1.0]), None, ""),
    "two points": (table(stamps(2), x=[1.0, 2.0]), None, ""),
    "no row": ("t,x\n", 1, ""),
    "all missing": (table(stamps(300), x=[float("nan")] * 300), 1, ""),
    "constant": (table(stamps(300), x=[7.0] * 300), 0, "0 events"),
    "constant beside another": (table(stamps(600), c=[7.0] * 600, x=odd()), 0, "event"),
    "empty beside another": (table(stamps(600), e=[float("nan")] * 600, x=odd()), 0, "event"),
    "text beside another": (table(stamps(600), s=["on"] * 600, x=odd()), 0, "not numbers"),
    "gap longer than the window": (gap(), 0, "gap"),
    "spring": (spring(), 0, "6 missing steps"),
    "autumn": (autumn(), 0, ""),
    "clock set back": (set_back(), 0, ""),
    "one stamp for all": (table(["2026-03-28 12:00"] * 300, x=odd(300)), 1, ""),
    "no stamp that can be read": (table(["soon"] * 300, x=odd(300)), 1, ""),
}


CODE = """
import json, os, sys
from skerry.app.cli import main

out, arguments = {}, sys.argv[2:]
for name in json.loads(sys.argv[1]):
    os.dup2(os.open(name + ".csv", os.O_RDONLY), 0)
    sys.argv = ["skerry", "detect", *(name + ".csv" if a == "FILE" else a for a in arguments)]
    with open("out", "w") as sys.stdout, open("error", "w") as sys.stderr:
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
    out[name] = [code, open("out").read(), open("error").read()]
print(json.dumps(out), file=sys.__stdout__)
"""


def run_all(folder, tables, *arguments):
    """Run the command on all tables in one process, one after another; return code, stdout and stderr of each."""
    for name, (text, _, _) in tables.items():
        (folder / f"{name}.csv").write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(list(tables)), *arguments],
        cwd=folder, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module", params=["forecast", "ensemble", "matrix-profile"])
def told(tmp_path_factory, request):
    options = ("--kind", "series", "--time", "t", "--detector", request.param)
    return run_all(tmp_path_factory.mktemp("bad"), FILES, "FILE", *options)


@pytest.mark.parametrize("name", list(FILES))
def test_a_bad_file_ends_in_words(told, name):
    _, code, words = FILES[name]
    got, out, error = told[name]
    flat = " ".join((out + error).split())
    assert "Traceback" not in flat
    assert "defect of skerry" not in flat
    assert got == code if code is not None else got in (0, 1), flat
    if got == 1:
        assert error.startswith("skerry: error: ")
        assert len(error.strip().splitlines()) == 1
        assert f"{name}.csv" in error
    assert words in flat, flat


LATER = {  # files that a model of the channels x and y is asked about
    "one channel missing": (table(stamps(600), x=odd()), 0, "taken as missing throughout: 'y'"),
    "a new channel": (table(stamps(600), z=wave(600), x=odd(), y=wave(600, 1)), 0, "left out: 'z'"),
    "other channels": (table(stamps(600), a=odd(), b=wave(600)), 1, "none of the channels"),
    "one row": (table(stamps(1), x=[1.0], y=[0.0]), 0, "0 events"),
    "no time": ("x,y\n" + "\n".join(f"{v},0.5" for v in odd()) + "\n", 1, ""),
    "another pace": (table(stamps(600, minutes=60), x=odd(), y=wave(600, 1)), 0, "steps of 1 h"),
}


@pytest.fixture(scope="module")
def later(tmp_path_factory):
    folder = tmp_path_factory.mktemp("later")
    (folder / "early").mkdir()
    files = {"early": (table(stamps(600), x=wave(600, 2), y=wave(600, 3)), 0, "")}
    options = ("--kind", "series", "--detector", "forecast", "--save-model", "../m.skerry")
    assert run_all(folder / "early", files, "FILE", *options)["early"][0] == 0
    return run_all(folder, LATER, "FILE", "--model", "m.skerry")


@pytest.mark.parametrize("name", list(LATER))
def test_a_model_meets_other_files_in_words(later, name):
    _, code, words = LATER[name]
    got, out, error = later[name]
    flat = " ".join((out + error).split())
    assert "Traceback" not in flat
    assert "defect of skerry" not in flat
    assert got == code, flat
    assert words in flat
    if code == 1:
        assert f"{name}.csv" in error
    elif name == "a new channel":
        assert "2026-03-31 06:40" in flat


def test_a_chronos_folder_without_its_config_is_told(tmp_path):
    pytest.importorskip("torch", reason="needs the extra 'deep'")
    pytest.importorskip("transformers", reason="needs the extra 'deep'")
    (tmp_path / "Chronos-Small").mkdir()
    files = {"s": (table(stamps(600), x=odd()), 1, "")}
    code, _, error = run_all(tmp_path, files, "FILE", "--detector", "themis:Chronos-Small")["s"]
    assert code == 1
    assert len(error.strip().splitlines()) == 1
    assert "Chronos-Small/config.json: cannot be read" in error


STREAMS = {
    "one point": (table(stamps(1), x=[1.0]), 0, "nothing was scored"),
    "two points": (table(stamps(2), x=[1.0, 2.0]), 0, "nothing was scored"),
    "nothing": ("", 0, "nothing was scored"),
    "all missing": (table(stamps(300), x=[float("nan")] * 300), 1, "no column of numbers beside the time"),
    "silent after a while": (table(stamps(600), x=[*wave(50), *[float("nan")] * 550]), 0, "has had no value"),
    "constant": (table(stamps(300), x=[7.0] * 300), 0, "constant or empty in the warm-up: 'x'"),
    "gap": (table(stamps(300) + stamps(300, START + dt.timedelta(days=90)), x=odd()), 0, "the series starts anew"),
    "clock set back": (set_back(), 0, "the clock goes back"),
    "autumn": (autumn(), 0, "the clock goes back at 2026-10-25 02:00"),
    "cut line": (table(stamps(300), x=odd(600)[:300])[:-4], 0, "no line break"),
    "channel gone": (
        table(stamps(600)[:300], x=odd()[:300], y=wave(300)) + table(stamps(600)[300:], x=odd()[300:]),
        0,
        "gone, missing from here on: 'y'",
    ),
    "channel new": (
        table(stamps(600)[:300], x=odd()[:300]) + table(stamps(600)[300:], x=odd()[300:], z=wave(300)),
        0,
        "new, left out: 'z'",
    ),
    "unreadable lines": (
        table(stamps(600), x=odd()).replace("\n2026-03-30", "\n;;;\x07\n2026-03-30"),
        0,
        "lines left out",
    ),
}


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    return run_all(tmp_path_factory.mktemp("streams"), STREAMS, "-", "--follow", "--warmup", "120", "--json")


@pytest.mark.parametrize("name", list(STREAMS))
def test_a_bad_stream_ends_in_words(followed, name):
    _, code, words = STREAMS[name]
    got, out, error = followed[name]
    assert "Traceback" not in error
    assert got == code, error
    assert words in error
    for line in out.splitlines():
        json.loads(line)
    if name in ("channel gone", "channel new", "unreadable lines", "clock set back", "autumn"):
        assert any(json.loads(line)["kind"] == "alarm" for line in out.splitlines()), "the burst was lost"


def test_an_interruption_of_a_file_leaves_nothing_half_written(tmp_path):
    (tmp_path / "s.csv").write_text(table(stamps(600), x=odd()))
    code = (
        "import os, signal, skerry.detect.series.pipeline as p\n"
        "write = p._write\n"
        "def slow(*args):\n"
        "    os.kill(os.getpid(), signal.SIGINT); write(*args)\n"
        "p._write = slow\n" + MAIN
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "detect", "s.csv", "--detector", "forecast", "--out", "o.csv"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["s.csv"]


def test_ctrl_c_at_once_is_one_line(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "detect", "-", "--follow"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path,
    )  # fmt: skip
    line = process.stderr.readline()  # the detector is told: the command listens
    assert b"forecast" in line
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in error
