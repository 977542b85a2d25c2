"""Readers and encoders: from files and frames to numbers."""

from skerry.core.lazy import lazy_package

__getattr__, __dir__, __all__ = lazy_package(
    __name__,
    {
        "ColumnReport": "skerry.data.encoder",
        "Table": "skerry.data.table",
        "TableEncoder": "skerry.data.encoder",
        "open_table": "skerry.data.tables",
        "reservoir_sample": "skerry.data.table_sample",
    },
)
