"""``skerry detect - --follow`` as a user runs it."""

import json

import numpy as np


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
    assert skerry("detect", "x.csv", "--follow").returncode == 2
    assert skerry("detect", "-", "--follow", "--detector", "matrix-profile", stdin="").returncode == 2
