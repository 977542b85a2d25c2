"""Find the moments that do not belong: detectors for series of shape (T, c)."""

from skerry.core.lazy import lazy_package

NAMES = {
    "ChannelComponents": "skerry.detect.series.channel_components",
    "Ensemble": "skerry.detect.series.ensemble",
    "Forecast": "skerry.detect.series.forecast",
    "HalfSpaceTrees": "skerry.detect.series.half_space_trees",
    "ImDiffusion": "skerry.detect.series.imdiffusion",
    "LiveDetector": "skerry.detect.series.live",
    "LiveEvent": "skerry.detect.series.live_event",
    "MatrixProfile": "skerry.detect.series.matrix_profile",
    "SeasonalResidual": "skerry.detect.series.seasonal_residual",
    "SpectralResidual": "skerry.detect.series.spectral_residual",
    "Themis": "skerry.detect.series.themis",
    "Windowed": "skerry.detect.series.windowed",
    "find_events": "skerry.detect.series.pipeline",
    "make_stream_threshold": "skerry.detect.series.stream_rules",
    "make_series_detector": "skerry.detect.series.registry",
}
__getattr__, __dir__, __all__ = lazy_package(__name__, NAMES)
