"""The report: whole, safe, small, and drawn by a real browser."""

import shutil
import subprocess
import xml.etree.ElementTree as ET

import numpy as np
import polars as pl
import pytest

import skerry
from skerry.report import svg
from skerry.report.html import render_report


@pytest.fixture(scope="module")
def found():
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(rng.normal(size=(300, 3)), schema=["<b>bold</b>", "b & c", "plain"])
    frame[7, 0] = 40.0
    return skerry.find_outliers(frame, detector="ecod", threshold="contamination:0.02")


def test_every_name_from_the_data_is_escaped(found):
    page = render_report(found)
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold" in page
    assert "<script" not in page
    assert len(page) < 3_000_000


def test_a_report_without_any_finding_is_whole(found):
    quiet = skerry.find_outliers(pl.DataFrame({"a": [1, 2, 3, 4], "b": [1, 2, 4, 3]}), detector="ecod", threshold=0)
    assert quiet.n_flagged == 0
    assert "No row scores above the threshold" in render_report(quiet)


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [0.0, 1e-300], [-5.0, 0.0, 5.0], list(range(1000))])
def test_charts_are_sound_xml(values):
    for text in (
        svg.histogram(values, 1.0),
        svg.histogram(values, np.inf),
        svg.scatter(values, values, [True] * len(values), ["<&>"] * len(values)),
        svg.bars({"a<b": 0.7, "c": 0.3}),
    ):
        ET.fromstring(text)
    assert svg.bars({}) == ""


def test_figures_for_notebooks(found):
    assert found.plot().data
    from skerry.report import map_figure

    assert len(map_figure(found).data[0].x) == 300


def test_a_browser_draws_the_page_on_a_phone(found, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    page, picture = tmp_path / "r.html", tmp_path / "r.png"
    found.to_html(page)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    subprocess.run(
        [
            browser, *flags, "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=400,3000",
            f"--screenshot={picture}", page.as_uri(),
        ],
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    from PIL import Image

    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    red = (abs(pixels - [209, 73, 91]).sum(axis=2) < 30) | (abs(pixels - [240, 112, 127]).sum(axis=2) < 30)
    assert red.sum() > 50  # the threshold and the flagged rows are there
    assert pixels.std() > 10
