"""Run a network in few bits although its outliers break low-bit formats: recipes of parts, one engine."""

from skerry.core.lazy import lazy_package

__getattr__, __dir__, __all__ = lazy_package(
    __name__,
    {
        "Recipe": "skerry.quant.recipe",
        "attach_lora": "skerry.quant.adapters",
        "compare": "skerry.quant.comparison",
        "diagnose": "",
        "load": "skerry.quant.checkpoint",
        "save": "skerry.quant.checkpoint",
        "use_kernels": "skerry.quant.api",
        "patches": "",
        "quantize_patches": "skerry.quant.patches.api",
        "make_recipe": "skerry.quant.recipes",
        "quantize": "skerry.quant.api",
        "recipe_of": "skerry.quant.report",
        "report_of": "skerry.quant.api",
        "recipes": "",
        "solvers": "",
        "formats": "",
        "transforms": "",
    },
)
