import json
from pathlib import Path

from skerry.core.catalogue import papers

ROOT = Path(__file__).resolve().parents[2]


def test_fifty_one_papers_with_unique_slugs():
    assert len(papers()) == 51
    assert len({p.slug for p in papers()}) == 51


def test_a_row_that_works_has_a_full_committed_study():
    for p in papers():
        if p.status == "works":
            result = json.loads((ROOT / "benchmarks" / f"{p.slug}.json").read_text())
            assert result["table"]
            assert result["quick"] is False


def test_the_home_of_what_works_exists():
    for p in papers():
        if p.status == "works":
            for home in p.home.split(", "):
                if home.startswith("skerry."):
                    place = ROOT / "src" / home.replace(".", "/")
                    assert place.with_suffix(".py").exists() or (place / "__init__.py").exists(), home
