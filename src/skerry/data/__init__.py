"""Readers and encoders: from files and frames to numbers."""

from skerry.core.lazy import lazy_package

__getattr__, __dir__, __all__ = lazy_package(
    __name__,
    {
        "LabelledSeries": "skerry.data.series_sets",
        "SeriesFrame": "skerry.data.series_frame",
        "ColumnReport": "skerry.data.encoder",
        "Table": "skerry.data.table",
        "TableEncoder": "skerry.data.encoder",
        "find_time_column": "skerry.data.series",
        "labelled_series": "skerry.data.series_sets",
        "open_table": "skerry.data.tables",
        "read_series": "skerry.data.series",
        "reservoir_sample": "skerry.data.table_sample",
    },
)
