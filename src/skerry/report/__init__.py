"""Plots and self-contained HTML pages."""

from skerry.core.lazy import lazy_package

__getattr__, __dir__, __all__ = lazy_package(
    __name__,
    {
        "map_figure": "skerry.report.figures",
        "score_figure": "skerry.report.figures",
        "write_report": "skerry.report.html",
    },
)
