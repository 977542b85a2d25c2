"""Modules that keep a transformer free of outliers: plain ``torch.nn.Module``s that drop into anyone's code.

Norms take ``(..., d)`` and return the same shape; attention takes ``(B, T, d)``. They need the extra ``deep``; the
conversion of ``transformers`` models needs version 5 of that package or newer.
"""

from skerry.core.lazy import lazy_package

_HOME = "skerry.train.nn."
NAMES = {
    "CausalAttention": _HOME + "causal_attention",
    "ClippedSoftmax": _HOME + "softmax",
    "DyT": _HOME + "dyt",
    "EmbeddingProjection": _HOME + "embedding_projection",
    "FixedScale": _HOME + "fusion",
    "GatedAttention": _HOME + "attention",
    "GatedDyT": _HOME + "dyt",
    "GatedNorm": _HOME + "gated_norm",
    "HeadGate": _HOME + "gates",
    "LowRankGate": _HOME + "gated_norm",
    "PreAffineRMSNorm": _HOME + "pre_affine",
    "ProjectedEmbedding": _HOME + "embedding_projection",
    "ProjectedHead": _HOME + "embedding_projection",
    "ReLUWeights": _HOME + "attention_controls",
    "ResidualClip": _HOME + "residual_clip",
    "SigmoidWeights": _HOME + "causal_attention",
    "SingleScaleRMSNorm": _HOME + "single_scale_norm",
    "SoftmaxPlusOne": _HOME + "attention_controls",
    "UnifiedNorm": _HOME + "unified_norm",
    "absorb_embedding_projection": _HOME + "embedding_projection",
    "clipped_softmax": _HOME + "softmax",
    "convert_transformers": _HOME + "transformers_models",
    "expand_single_scale": _HOME + "single_scale_norm",
    "find_norms": _HOME + "replace",
    "fuse_unified_norm": _HOME + "fusion",
    "replace_norms": _HOME + "replace",
}

__getattr__, __dir__, __all__ = lazy_package(__name__, NAMES)
