"""Patch-based inference of small CNNs in mixed precision, after QuantMCU (arXiv 2401.13714)."""

from skerry.core.lazy import lazy_package

__getattr__, __dir__, __all__ = lazy_package(
    __name__,
    {
        "CnnGraph": "skerry.quant.patches.graph",
        "InfeasibleError": "skerry.quant.patches.cost",
        "Layout": "skerry.quant.patches.receptive",
        "PatchExecutor": "skerry.quant.patches.executor",
        "PatchedModel": "skerry.quant.patches.api",
        "Plan": "skerry.quant.patches.plan",
        "QuantMCU": "skerry.quant.patches.search",
        "VDPC": "skerry.quant.patches.classification",
        "VDQS": "skerry.quant.patches.scores",
        "quantize_patches": "skerry.quant.patches.api",
        "uniform_plan": "skerry.quant.patches.search",
    },
)
