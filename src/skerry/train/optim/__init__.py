"""Optimizers whose updates have no preferred axis: Muon, ROOT, the fit of its coefficients, and parameter grouping."""

from skerry.core.lazy import lazy_package

_NAMES = {
    "Muon": "skerry.train.optim.muon",
    "ROOT": "skerry.train.optim.root",
    "adanewton": "",
    "newton_schulz": "skerry.train.optim.orthogonalize",
    "parameter_roles": "skerry.train.optim.grouping",
    "soft_threshold": "skerry.train.optim.root",
    "split_params": "skerry.train.optim.grouping",
}
__getattr__, __dir__, __all__ = lazy_package(__name__, _NAMES)
