"""Build the site: check every page, run its Python, make its pictures, and write HTML to ``site/``.

A broken link, a Python block that fails, a command that is unknown or a table of the README that is not the
catalogue's ends the build with an error. ``python docs/build.py --readme`` writes that table anew.
"""

from __future__ import annotations

import contextlib
import html
import io
import os
import re
import shutil
import sys
from pathlib import Path

import markdown

ROOT = Path(__file__).resolve().parents[1]
DOCS, SITE = ROOT / "docs", ROOT / "site"
MARKS = "<!-- papers: made by python docs/build.py --readme -->", "<!-- /papers -->"
STYLE = (
    "body{font:16px/1.55 system-ui,sans-serif;max-width:860px;margin:0 auto;padding:16px;color:#1d2a36}"
    "pre{background:#f4f6f8;padding:10px;overflow-x:auto}code{background:#f4f6f8}"
    "table{border-collapse:collapse}td,th{border-top:1px solid #dfe5ea;padding:4px 10px 4px 0;text-align:left}"
    "img,svg{max-width:100%;height:auto}.wide{overflow-x:auto}td{vertical-align:top}"
)


def with_table(text: str) -> str:
    """Return the README with the table of papers that the catalogue gives."""
    from skerry.app.papers import verb_table
    from skerry.core.catalogue import papers

    head, rest = text.split(MARKS[0], 1)
    tail = rest.split(MARKS[1], 1)[1]
    return f"{head}{MARKS[0]}\n{verb_table(papers())}{MARKS[1]}{tail}"


def pictures() -> None:
    """Make the pictures of the pages from the example table."""
    import skerry
    from skerry.report import svg

    found = skerry.find_outliers(ROOT / "examples" / "payments.csv", label="fraud", threshold="contamination:0.02")
    style = (
        "<style>.in{fill:#6b8fb3}.out{fill:#d1495b}.grey{fill:#c3ccd5}.grid{stroke:#dfe5ea}"
        ".cut{stroke:#d1495b;stroke-dasharray:5 4}"
        ".panel{fill:#6b8fb3;fill-opacity:.08}.line{fill:#3d6a94}.score{fill:#8a6d3b}.event{fill:#d1495b;opacity:.22}"
        ".usual{fill:#cfe3d4;opacity:.7}text{fill:#5c6b79;font:12px system-ui,sans-serif}</style>"
    )
    points = found.map_points
    drawn = {
        "scores": svg.histogram(found.score_sample, found.threshold),
        "columns": svg.bars(found.importance),
        "map": svg.scatter(points["x"], points["y"], points["outlier"], [f"row {r}" for r in points["row"]]),
    }
    drawn |= series_pictures()
    (SITE / "images").mkdir(parents=True, exist_ok=True)
    drawn["ranking"] = ranking_picture()
    for name, text in drawn.items():
        head, body = text.split(">", 1)
        (SITE / "images" / f"{name}.svg").write_text(f'{head} xmlns="http://www.w3.org/2000/svg">{style}{body}')


def series_pictures() -> dict[str, str]:
    """Make the pictures of the pages on series: the example pump, and what merging does to flags."""
    import numpy as np

    from skerry.core.events import AlarmRule
    from skerry.core.series_findings import ScoredSeries, SeriesEvent
    from skerry.detect.series import find_events
    from skerry.report import series_svg

    found = find_events(ROOT / "examples" / "pump.csv", train_share=0.4)
    pump = found.series[0]
    leak = next(e for e in found.events if e.start < 1028 and e.stop > 1010)
    rng = np.random.default_rng(2)
    score = np.abs(rng.normal(size=900)) + 2.2 * ((np.arange(900) % 300 > 180) & (np.arange(900) % 300 < 230))
    flags = score > 2.9
    stretches = AlarmRule(merge_gap=30, min_length=5).events(flags, score)
    events = [SeriesEvent("", e.start, e.stop, "", "", "", e.peak, e.score, 0.0) for e in stretches]
    noisy = ScoredSeries("flags", ["step 0", "step 899"], flags[:, None] * 1.0, ["flagged"], score, flags, 2.9)
    return {
        "pump": series_svg.overview(pump, found.events, range(3)),
        "leak": series_svg.close_up(pump, leak, [pump.channels.index(c) for c in ("flow", "pressure")]),
        "alarms": series_svg.overview(noisy, events, [0]),
    }


def ranking_picture() -> str:
    """Draw what each column of the example tells about fraud: as counted, and with what chance tells subtracted."""
    from skerry.rank import OutRank

    source = ROOT / "examples" / "payments.csv"
    plain, ranked = (
        dict(OutRank(correction=c).fit(source, target="fraud").ranking_.select("feature", "score").iter_rows())
        for c in ("none", "permutation")
    )
    names = sorted(plain, key=lambda n: -plain[n])
    scale, row = 400 / max(plain.values()), 40
    body = []
    for i, name in enumerate(names):
        y = 30 + i * row
        body.append(f'<text x="132" y="{y + 20}" text-anchor="end">{html.escape(name)}</text>')
        for j, (kind, value) in enumerate((("grey", plain[name]), ("in", max(ranked[name], 0.0)))):
            top, length = y + 4 + 13 * j, max(value * scale, 1)
            body.append(f'<rect class="{kind}" x="140" y="{top}" width="{length:.1f}" height="12"/>')
            body.append(f'<text x="{146 + length:.1f}" y="{top + 11}">{value:.4f}</text>')
    key = '<rect class="grey" x="140" y="8" width="12" height="12"/><text x="158" y="18">plain information, nats</text>'
    key += '<rect class="in" x="330" y="8" width="12" height="12"/><text x="348" y="18">chance subtracted</text>'
    return f'<svg viewBox="0 0 640 {30 + row * len(names)}" role="img">{key}{"".join(body)}</svg>'


def with_results(text: str) -> str:
    """Bring the pictures and tables of ``benchmarks/`` that a page's HTML names into the site, and name those."""
    results = ROOT / "benchmarks"

    def picture(match: re.Match[str]) -> str:
        if (results / match[1]).exists():
            shutil.copyfile(results / match[1], SITE / "images" / match[1])
        return f'src="images/{match[1]}"'

    def table(match: re.Match[str]) -> str:
        if (results / f"{match[1]}.md").exists():
            source = (results / f"{match[1]}.md").read_text(encoding="utf-8")
            write_page(f"result-{match[1]}.html", source)
        return f'href="result-{match[1]}.html"'

    text = re.sub(r'src="\.\./benchmarks/([\w.-]+\.svg)"', picture, text)
    return re.sub(r'href="\.\./benchmarks/([\w-]+)\.md"', table, text)


def write_page(name: str, source: str) -> None:
    """Write a Markdown text as a page of the site."""
    body = markdown.markdown(source, extensions=["tables", "fenced_code"])
    body = re.sub(r'href="([\w-]+)\.md"', r'href="\1.html"', with_results(body))
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    title = html.escape(source.splitlines()[0].lstrip("# "))
    home = "" if name == "index.html" else '<p><a href="index.html">Skerry</a></p>'
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{STYLE}</style>{home}{body}"
    )
    (SITE / name).write_text(page + "</html>", encoding="utf-8")


def check(page: Path, text: str, pages: set[str]) -> list[str]:
    """Return what is wrong with a page: links to nothing, Python that fails, unknown commands."""
    wrong = []
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if target.startswith("images/"):
            if not (SITE / target).exists():
                wrong.append(f"{page.name}: no picture {target}")
        elif "://" not in target and Path(target).name not in pages and not (page.parent / target).exists():
            wrong.append(f"{page.name}: link to {target}, which is not there")
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.S):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block, page.name, "exec"), names)
        except Exception as error:
            wrong.append(f"{page.name}: its Python fails: {type(error).__name__}: {error}")
    from skerry.app.cli import app

    known = {c.name or c.callback.__name__ for c in app.registered_commands} | {g.name for g in app.registered_groups}
    for command in re.findall(r"^\$ skerry (\w+)", text, flags=re.M):
        if command not in known:
            wrong.append(f"{page.name}: unknown command skerry {command}")
    return wrong


def main() -> int:
    from skerry.app.papers import gallery
    from skerry.core.catalogue import papers

    os.chdir(ROOT)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    if "--readme" in sys.argv[1:]:
        (ROOT / "README.md").write_text(with_table(readme), encoding="utf-8")
        return 0
    SITE.mkdir(exist_ok=True)
    pictures()
    sources = {p.name: p.read_text(encoding="utf-8") for p in sorted(DOCS.glob("*.md"))}
    sources["papers.md"] = gallery(papers())
    work = SITE / "work"
    work.mkdir(exist_ok=True)
    wrong: list[str] = []
    if with_table(readme) != readme:
        wrong.append("README.md: its table differs from the catalogue; run: python docs/build.py --readme")
    for name, text in {**sources, "README.md": readme}.items():
        wrong += check((ROOT if name == "README.md" else DOCS) / name, text, set(sources))
        if name != "README.md":
            write_page(name.replace(".md", ".html"), text)
    for line in wrong:
        print(line, file=sys.stderr)
    print(f"docs: {len(sources)} pages in {SITE.name}/, {len(wrong)} problems")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
