"""Every command as a person runs it: in a process of its own, on good and on bad input."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import polars as pl
import pytest


def error_of(result):
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("skerry: error: ")
    return lines[0]


def test_detect_finds_reports_and_saves(skerry, payments, tmp_path):
    result = skerry(
        "detect", payments, "--label", "fraud", "--json", "--out", "s.parquet", "--report", "r.html",
        "--save-model", "m.skerry", "--threshold", "contamination:0.02",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert {"rows", "features", "detector", "threshold", "seconds", "flagged", "metrics"} <= found.keys()
    assert found["rows"] == 2000
    assert found["n_flagged"] == 40
    assert found["metrics"]["auroc"] > 0.9
    assert all(f["reasons"] for f in found["flagged"])
    scores = pl.read_parquet(tmp_path / "s.parquet")
    assert scores.columns == ["row", "score", "p_value", "outlier", "reasons"]
    assert scores["outlier"].sum() == 40
    assert scores.filter(pl.col("outlier"))["reasons"].str.len_chars().min() > 0
    page = (tmp_path / "r.html").read_text()
    assert len(page) < 3_000_000
    assert "<script" not in page
    assert "http" not in page.split("</head>")[1].replace("http://www.w3.org", "")

    again = skerry("detect", payments, "--model", "m.skerry", "--json", "--label", "fraud", "--top", "10")
    assert again.returncode == 0, again.stderr
    assert [f["row"] for f in json.loads(again.stdout)["flagged"]] == [f["row"] for f in found["flagged"]]


def test_same_seed_same_answer_on_any_number_of_threads(skerry, payments):
    def flagged(threads):
        result = skerry("detect", payments, "--json", "--seed", 3, "--threads", threads)
        return json.loads(result.stdout)["flagged"]

    assert flagged(1) == flagged(2)


def test_stdin_and_plain_output(skerry, payments):
    result = skerry("detect", "-", "--detector", "ecod", "--top", "2", stdin=payments.read_text())
    assert result.returncode == 0, result.stderr
    assert "standard input: 2,000 rows" in result.stdout
    assert "payment_id: identifier" in result.stdout


def write(path, text):
    path.write_text(text)
    return path


GOOD = "a,b\n" + "".join(f"{i % 7},{(i * 37) % 11}\n" for i in range(60))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", "", "is empty"),
        ("header.csv", "a,b\n", "no rows"),
        ("twice.csv", "a,a\n1,2\n", "two columns are named 'a'"),
        ("ragged.csv", "a,b\n1,2\n3\n4,5\n", "1 fields, 2 expected"),
        ("constant.csv", "a,b\n1,2\n1,2\n1,2\n", "no column is left"),
        ("missing.csv", "a\nNA\nNA\n", "no column is left"),
        ("unknown.xyz", "a,b\n1,2\n", "unknown kind"),
        ("bad.parquet", "PAR1 nothing", "not a whole Parquet file"),
        ("bad.npy", "nothing", "not a whole .npy"),
        ("bad.npz", "nothing", "not a whole .npz"),
        ("bad.jsonl", "{a:1\n", "not JSON lines"),
    ],
)
def test_bad_files_end_in_one_line(skerry, tmp_path, name, content, message):
    write(tmp_path / name, content)
    error = error_of(skerry("detect", name, "--detector", "ecod"))
    assert message in error
    assert name in error or "column" in error


def test_truncated_gzip_and_bombs(skerry, tmp_path):
    data = gzip.compress((GOOD * 200).encode())
    (tmp_path / "cut.csv.gz").write_bytes(data[: len(data) // 2])
    assert "truncated" in error_of(skerry("detect", "cut.csv.gz", "--detector", "ecod"))
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as z, z.open("X.npy", "w") as f:
        header = np.lib.format
        header.write_array_header_1_0(f, {"descr": "<f8", "fortran_order": False, "shape": (1 << 22, 1)})
        for _ in range(32):
            f.write(bytes(1 << 20))
    result = skerry("detect", "bomb.npz", "--detector", "ecod")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--detector", "izolation"], 2, "unknown detector"),
        (["--threshold", "contamination:0.9"], 2, "contamination must lie in"),
        (["--threshold", "sometimes"], 2, "unknown threshold"),
        (["--label", "nope"], 1, "no label column 'nope'"),
        (["--label", "a"], 1, "neither 0/1 nor true/false"),
        (["--out", "missing/s.parquet"], 1, "does not exist"),
        (["--out", "s.txt"], 1, "must end in .parquet or .csv"),
        (["--model", "nope.skerry"], 1, "no such file"),
    ],
)
def test_bad_options(skerry, tmp_path, args, code, message):
    write(tmp_path / "good.csv", GOOD)
    result = skerry("detect", "good.csv", *(args if "--detector" in args else ["--detector", "ecod", *args]))
    assert result.returncode == code, result.stderr
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr
    assert not [p for p in tmp_path.iterdir() if p.name != "good.csv"]


def test_a_label_of_one_class(skerry, tmp_path):
    write(tmp_path / "one.csv", "a,b,y\n" + "".join(f"{i % 7},{(i * 37) % 11},0\n" for i in range(60)))
    assert "only the class 0" in error_of(skerry("detect", "one.csv", "--label", "y", "--detector", "ecod"))


@pytest.mark.parametrize(
    "content",
    [
        "a;b\n" + "".join(f"{i % 7};{(i * 37) % 11}\n" for i in range(60)),
        "a,b\n" + "".join(f"{i % 7},{'x' if i == 30 else i}\n" for i in range(60)),
        "a,b\n" + "".join(f"{i % 7},{'inf' if i == 30 else i % 5}\n" for i in range(60)),
        "a,b\n" + "".join(f"{i % 7},{'1e308' if i == 30 else i % 5}\n" for i in range(60)),
        "a\n" + "".join(f"{i % 7}\n" for i in range(60)),
        "a,b\n3,4\n5,6\n",
    ],
    ids=["semicolons", "mixed types", "infinity", "1e308", "one column", "two rows"],
)
def test_odd_but_usable_files_are_scored(skerry, tmp_path, content):
    write(tmp_path / "t.csv", content)
    result = skerry("detect", "t.csv", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["rows"] == content.count("\n") - 1


def test_five_thousand_columns(skerry, tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "wide.npy", rng.normal(size=(40, 5000)))
    result = skerry("detect", "wide.npy", "--detector", "isolation-forest", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["features"] == 5000


def test_interruption_leaves_nothing_half_written(tmp_path):
    rng = np.random.default_rng(0)
    pl.DataFrame(rng.normal(size=(400_000, 6))).write_parquet(tmp_path / "big.parquet")
    before = (tmp_path / "big.parquet").read_bytes()
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from skerry.app.cli import main; main()",
            "detect",
            "big.parquet",
            "--out",
            "s.csv",
        ],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(2.5)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    left = sorted(os.listdir(tmp_path))
    if process.returncode == 0:  # finished before the signal came
        assert left == ["big.parquet", "s.csv"]
    else:
        assert process.returncode == 130
        assert "Traceback" not in error
        assert left == ["big.parquet"]
    assert (tmp_path / "big.parquet").read_bytes() == before


def test_papers_and_bench_lists(skerry):
    listed = skerry("papers")
    assert listed.returncode == 0, listed.stderr
    assert "51 papers" in listed.stdout
    assert "outrank" in skerry("papers", "outrank").stdout
    assert "did you mean" in error_of(skerry("papers", "outrnk"))
    assert "tabular-speed" in skerry("bench", "list").stdout
    assert "did you mean" in error_of(skerry("bench", "run", "tabular-sped"))
    assert "no data folder" in error_of(skerry("bench", "run", "tabular", "--data", "nowhere"))


def test_help_is_light_and_has_examples(skerry):
    for command in ("detect", "rank", "papers"):
        result = skerry(command, "--help")
        assert result.returncode == 0
        assert "Example" in result.stdout
    code = (
        "import sys, skerry.app.cli, skerry; "
        "heavy = {'torch', 'numba', 'polars', 'sklearn', 'pandas', 'pyarrow'} & set(sys.modules); print(sorted(heavy))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
