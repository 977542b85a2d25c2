"""The calls that people make: quantize a model by a recipe's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from skerry.quant.engine import Progress, quantize_model
from skerry.quant.linear import QuantizedLinear
from skerry.quant.offload import StoredLinear
from skerry.quant.recipe import Recipe
from skerry.quant.recipes import make_recipe
from skerry.quant.report import QuantizationReport
from skerry.quant.resume import discard

__all__ = ["quantize", "report_of", "use_kernels"]


def quantize(
    model: nn.Module,
    recipe: str | Recipe = "rtn",
    bits: str = "w8a8",
    calibration: Any = None,
    *,
    inplace: bool = False,
    memory: int = 2**31,
    scratch: Path | None = None,
    random_state: int = 0,
    work_dir: str | Path | None = None,
    progress: Progress = lambda what, done, total: None,
    **settings: Any,
) -> nn.Module:
    """Return the model with quantized linear layers.

    Parameters
    ----------
    model : Module
        A model of ``transformers`` or any other with ``nn.Linear`` layers.
    recipe : str or Recipe, default "rtn"
        A name of :data:`skerry.quant.recipes.RECIPES`, or parts of your own.
    bits : str, default "w8a8"
        Weights and activations, for example "w4a16g128"; only with a named recipe.
    calibration : Tensor, mapping or list of them, optional
        Batches for ``model(batch)`` or ``model(**batch)``: text like that the model will see.
    inplace : bool, default False
        Change ``model`` itself; else a copy.
    memory : int, default 2 GiB
        Bytes of hidden states kept in memory; more go to ``scratch``.
    scratch : Path, optional
        Folder for them.
    random_state : int, default 0
    work_dir : path, optional
        New folder, or that of an interrupted run: finished blocks are kept there, and the same call goes on after them
        with the same result bit for bit. It is deleted at the end, unless the model's blocks were offloaded (see
        :func:`skerry.quant.offload.load_offloaded`): then the quantized model reads from it.
    progress : callable
        Called with (block, done, total).
    **settings
        Of the named recipe.

    Returns
    -------
    Module
        In evaluation mode; :func:`report_of` tells what was done.

    Raises
    ------
    ParameterError
        For an unknown recipe, setting or bit width.
    DataError
        If calibration data is missing or empty, or the work folder is in use.
    ModelError
        If a weight is not finite or a transform changed the function.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    >>> small = quantize(model, "rtn", "w8a8")
    >>> small[0]
    QuantizedLinear(8, 16, weight 8 bit, input 8 bit)
    """
    chosen = make_recipe(recipe, bits, **settings) if isinstance(recipe, str) else recipe
    found, _ = quantize_model(
        model,
        chosen,
        calibration=calibration,
        inplace=inplace,
        memory=memory,
        scratch=scratch,
        random_state=random_state,
        work_dir=work_dir,
        progress=progress,
    )
    if work_dir is not None and not any(isinstance(m, StoredLinear) for m in found.modules()):
        discard(Path(work_dir))
    return found


def report_of(model: nn.Module) -> QuantizationReport:
    """Return what :func:`quantize` did to a model.

    Raises
    ------
    AttributeError
        If the model does not come from :func:`quantize`.
    """
    report = getattr(model, "quantization_report", None)
    if not isinstance(report, QuantizationReport):
        raise AttributeError("this model was not made by skerry.quant.quantize")
    return report


def use_kernels(model: nn.Module, *, tokens: int | None = None) -> dict[str, str]:
    """Let every quantized layer compute with the fastest kernel that fits it, in place of the reference.

    The fastest by what ``skerry bench kernels`` measured on this machine, else by a fixed order.

    Parameters
    ----------
    model : Module
    tokens : int, optional
        Tokens at a time to choose for: 1 for decoding; by default all sizes count.

    Returns
    -------
    dict of layer name to kernel name
        "reference" where no kernel fits the format.

    Examples
    --------
    >>> import torch
    >>> small = quantize(torch.nn.Sequential(torch.nn.Linear(64, 64)), "rtn", "w8a8")
    >>> sorted(use_kernels(small))
    ['0']
    """
    from skerry.quant.runtime.choose import known_costs, prepare_kernel

    table = known_costs()
    chosen = {}
    for name, layer in model.named_modules():
        if isinstance(layer, QuantizedLinear) and layer.kernel is None:
            kernel = prepare_kernel(layer.solved, layer.activation, layer.bias, tokens=tokens, table=table)
            layer.set_kernel(kernel)
            chosen[name] = kernel.name
    return chosen
