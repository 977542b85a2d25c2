"""Diffusion transformers with adaLN-zero: ``DiTTransformer2DModel`` of diffusers and :class:`skerry.deep.dit.DiT`.

A norm's gain and shift come from the time step and the class, so nothing can be folded into it: changes of the inputs
stay in front of the layers. Modulation and embedders, which a block of diffusers holds, are kept in floating point.
"""

from skerry.quant.architectures.base import Architecture, GroupSpec

ARCHITECTURE = Architecture(
    name="DiT",
    model_types=("dit", "DiTTransformer2DModel"),
    blocks="transformer_blocks",
    groups=(
        GroupSpec(("attn1.to_q", "attn1.to_k", "attn1.to_v"), parent="attn1"),
        GroupSpec(("attn1.to_out.0",), "attn1.to_v", "rows"),
        GroupSpec(("ff.net.0.proj",)),
        GroupSpec(("ff.net.2",)),  # GELU does not let a scale through
    ),
    keep=("*.norm1.linear", "*.norm1.emb.*"),
)
