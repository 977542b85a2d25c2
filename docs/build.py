"""Build the site: check every page, run its Python, make its pictures, and write HTML to ``site/``.

A broken link, a Python block that fails or a command that is unknown ends the build with an error.
"""

from __future__ import annotations

import contextlib
import html
import io
import os
import re
import sys
from pathlib import Path

import markdown

ROOT = Path(__file__).resolve().parents[1]
DOCS, SITE = ROOT / "docs", ROOT / "site"
STYLE = (
    "body{font:16px/1.55 system-ui,sans-serif;max-width:860px;margin:0 auto;padding:16px;color:#1d2a36}"
    "pre{background:#f4f6f8;padding:10px;overflow-x:auto}code{background:#f4f6f8}"
    "table{border-collapse:collapse}td,th{border-top:1px solid #dfe5ea;padding:4px 10px 4px 0;text-align:left}"
    "img,svg{max-width:100%;height:auto}"
)


def gallery() -> str:
    """Return the table of papers, made from the catalogue."""
    from skerry.core.catalogue import papers

    rows = ["| paper | verb | status | measured |", "|---|---|---|---|"]
    rows += [f"| {p.title} ({p.year}) | {p.verb} | {p.status} | {p.figure} |" for p in papers()]
    return "# The papers\n\nMade from the catalogue; `skerry papers SLUG` tells more.\n\n" + "\n".join(rows) + "\n"


def pictures() -> None:
    """Make the pictures of the pages from the example table."""
    import skerry
    from skerry.report import svg

    found = skerry.find_outliers(ROOT / "examples" / "payments.csv", label="fraud", threshold="contamination:0.02")
    style = (
        "<style>.in{fill:#6b8fb3}.out{fill:#d1495b}.grid{stroke:#dfe5ea}.cut{stroke:#d1495b;stroke-dasharray:5 4}"
        "text{fill:#5c6b79;font:12px system-ui,sans-serif}</style>"
    )
    points = found.map_points
    drawn = {
        "scores": svg.histogram(found.score_sample, found.threshold),
        "columns": svg.bars(found.importance),
        "map": svg.scatter(points["x"], points["y"], points["outlier"], [f"row {r}" for r in points["row"]]),
    }
    (SITE / "images").mkdir(parents=True, exist_ok=True)
    for name, text in drawn.items():
        head, body = text.split(">", 1)
        (SITE / "images" / f"{name}.svg").write_text(f'{head} xmlns="http://www.w3.org/2000/svg">{style}{body}')


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
    os.chdir(ROOT)
    SITE.mkdir(exist_ok=True)
    pictures()
    sources = {p.name: p.read_text(encoding="utf-8") for p in sorted(DOCS.glob("*.md"))}
    sources["papers.md"] = gallery()
    work = SITE / "work"
    work.mkdir(exist_ok=True)
    wrong: list[str] = []
    for name, text in {**sources, "README.md": (ROOT / "README.md").read_text(encoding="utf-8")}.items():
        wrong += check((ROOT if name == "README.md" else DOCS) / name, text, set(sources))
        if name == "README.md":
            continue
        body = markdown.markdown(text, extensions=["tables", "fenced_code"])
        body = re.sub(r'href="([\w-]+)\.md"', r'href="\1.html"', body)
        title = html.escape(text.splitlines()[0].lstrip("# "))
        page = (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>{body}'
        )
        (SITE / name.replace(".md", ".html")).write_text(page + "</html>", encoding="utf-8")
    for line in wrong:
        print(line, file=sys.stderr)
    print(f"docs: {len(sources)} pages in {SITE.name}/, {len(wrong)} problems")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
