"""OPT: LayerNorm before attention and MLP, biases, ReLU (the smallest published one, 350m, is post-norm)."""

from torch import nn

from skerry.quant.architectures.base import Architecture, GroupSpec


def _check(model: nn.Module) -> str | None:
    return None if model.config.do_layer_norm_before else "its norms stand behind the residual sum"


ARCHITECTURE = Architecture(
    name="OPT",
    model_types=("opt",),
    blocks="model.decoder.layers|decoder.layers",
    groups=(
        GroupSpec(
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn_layer_norm", "norm", "self_attn"
        ),
        GroupSpec(("self_attn.out_proj",), "self_attn.v_proj", "rows"),
        GroupSpec(("fc1",), "final_layer_norm", "norm"),
        GroupSpec(("fc2",), "fc1", "rows"),  # a positive scale passes through ReLU
    ),
    embeddings="model.decoder.embed_tokens|decoder.embed_tokens",
    positions="model.decoder.embed_positions|decoder.embed_positions",
    head="lm_head",
    final_norm="model.decoder.final_layer_norm|decoder.final_layer_norm",
    writers=("self_attn.out_proj", "fc2"),
    check=_check,
)
