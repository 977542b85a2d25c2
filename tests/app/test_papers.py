"""The catalogue as tables: what README and the site show is what papers.toml says."""

import re
from dataclasses import replace
from pathlib import Path

from skerry.app.papers import QUESTIONS, gallery, verb_table
from skerry.core.catalogue import VERBS, papers

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_of_the_readme_is_that_of_the_catalogue():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- papers: .*? -->\n(.*?)<!-- /papers -->", text, flags=re.S)
    assert found, "README.md has lost the marks of its table"
    assert found[1] == verb_table(papers()), "the catalogue changed: run python docs/build.py --readme"


def test_every_paper_stands_once_in_each_table():
    rows = papers()
    assert tuple(QUESTIONS) == VERBS
    short, page = verb_table(rows), gallery(rows)
    for p in rows:
        assert len(re.findall(rf"(?<![\w/-]){re.escape(p.slug)}(?![\w.-])", short)) == 1, p.slug
        assert page.count(f"| **{p.slug}**: ") == 1
        assert f"`{p.replica}`" in page


def test_what_works_is_linked_to_its_result_and_what_is_planned_is_not():
    one = replace(papers()[0], slug="a", status="planned", figure="", date="")
    done = replace(one, slug="b", status="works", figure="0.9 | 0.8", date="2026-01-01")
    short, page = verb_table((one, done)), gallery((one, done))
    assert "| [b](benchmarks/b.md) | a |" in short
    assert "[works](../benchmarks/b.md), 2026-01-01 | 0.9 \\| 0.8 |" in page
    assert page.index("**b**") < page.index("**a**")
    assert "1 of them work" in page


def test_the_pages_that_works_is_linked_to_exist():
    for target in re.findall(r"\]\((benchmarks/[^)]+)\)", verb_table(papers())):
        assert (ROOT / target).is_file(), target
