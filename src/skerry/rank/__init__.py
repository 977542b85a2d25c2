"""Rank features: which columns carry signal, which are noise or broken."""

from skerry.core.lazy import lazy_package

__getattr__, __dir__, __all__ = lazy_package(
    __name__,
    {
        "MutualInformationScreen": "skerry.rank.mutual_information_screen",
        "OutRank": "skerry.rank.outrank",
        "mutual_information": "skerry.rank.mutual_information_screen",
        "prune_filters": "skerry.rank.filter_pruning",
        "rank_filters": "skerry.rank.filters",
        "stability_fraction": "skerry.rank.filters",
    },
)
