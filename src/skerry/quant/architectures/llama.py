"""Llama and its kin: RMSNorm, rotary attention (perhaps grouped), gated MLP, no biases."""

from skerry.quant.architectures.base import Architecture, GroupSpec

ARCHITECTURE = Architecture(
    name="Llama",
    model_types=("llama", "mistral", "qwen2", "qwen3", "llada"),
    blocks="model.layers|layers",
    groups=(
        GroupSpec(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "input_layernorm", "norm", "self_attn"),
        GroupSpec(("self_attn.o_proj",), "self_attn.v_proj", "rows", grouped_heads=True),
        GroupSpec(("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm", "norm", "mlp"),
        GroupSpec(("mlp.down_proj",), "mlp.up_proj", "rows"),
    ),
    embeddings="model.embed_tokens|embed_tokens",
    head="lm_head",
    final_norm="model.norm|norm",
    writers=("self_attn.o_proj", "mlp.down_proj"),
)
