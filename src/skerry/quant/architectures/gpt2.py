"""GPT-2: LayerNorm before attention and MLP; its ``Conv1D`` layers (in, out) become ``nn.Linear``."""

from __future__ import annotations

import torch
from torch import nn

from skerry.quant.architectures.base import Architecture, GroupSpec


def _prepare(model: nn.Module) -> None:
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "Conv1D":
            inputs, outputs = module.weight.shape
            linear = nn.Linear(inputs, outputs, device="meta", dtype=module.weight.dtype)
            with torch.no_grad():
                linear.weight = nn.Parameter(module.weight.detach().T.contiguous())
                linear.bias = nn.Parameter(module.bias.detach().clone())
            linear.train(module.training)
            model.set_submodule(name, linear)


ARCHITECTURE = Architecture(
    name="GPT-2",
    model_types=("gpt2",),
    blocks="transformer.h|h",
    groups=(
        GroupSpec(("attn.c_attn",), "ln_1", "norm", "attn"),
        GroupSpec(("attn.c_proj",)),  # values are a slice of c_attn
        GroupSpec(("mlp.c_fc",), "ln_2", "norm"),
        GroupSpec(("mlp.c_proj",)),  # GELU does not let a scale through
    ),
    embeddings="transformer.wte|wte",
    positions="transformer.wpe|wpe",
    head="lm_head",
    final_norm="transformer.ln_f|ln_f",
    writers=("attn.c_proj", "mlp.c_proj"),
    prepare=_prepare,
)
