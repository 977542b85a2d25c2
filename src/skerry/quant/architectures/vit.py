"""ViT: LayerNorm before attention and MLP, biases, GELU."""

from skerry.quant.architectures.base import Architecture, GroupSpec

ARCHITECTURE = Architecture(
    name="ViT",
    model_types=("vit",),
    blocks="vit.layers|layers|vit.encoder.layer|encoder.layer",
    groups=(
        GroupSpec(
            ("attention.q_proj", "attention.k_proj", "attention.v_proj"), "layernorm_before", "norm", "attention"
        ),
        GroupSpec(("attention.o_proj",), "attention.v_proj", "rows"),
        GroupSpec(("mlp.fc1",), "layernorm_after", "norm"),
        GroupSpec(("mlp.fc2",)),
    ),
    final_norm="vit.layernorm|layernorm",
    writers=("attention.o_proj", "mlp.fc2"),
)
