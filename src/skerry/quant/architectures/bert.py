"""BERT: LayerNorm behind the residual sum, whose output is also the next residual: changes stay at run time."""

from skerry.quant.architectures.base import Architecture, GroupSpec

ARCHITECTURE = Architecture(
    name="BERT",
    model_types=("bert", "roberta"),
    blocks="bert.encoder.layer|roberta.encoder.layer|encoder.layer",
    groups=(
        GroupSpec(("attention.self.query", "attention.self.key", "attention.self.value"), parent="attention.self"),
        GroupSpec(("attention.output.dense",), "attention.self.value", "rows"),
        GroupSpec(("intermediate.dense",)),
        GroupSpec(("output.dense",)),
    ),
)
