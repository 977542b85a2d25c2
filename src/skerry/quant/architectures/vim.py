"""Vision Mamba: an RMSNorm and a mixer of two directions a block; mixers are split first (see ``vim_block``)."""

from __future__ import annotations

import copy

from torch import nn

from skerry.core.errors import ModelError
from skerry.deep.vision_mamba import VisionMambaBlock
from skerry.quant.architectures.base import Architecture, GroupSpec
from skerry.quant.architectures.mamba import joined, scan_groups
from skerry.quant.architectures.vim_block import SplitVimBlock


def _prepare(model: nn.Module) -> None:
    for name, module in list(model.named_modules()):
        if isinstance(module, VisionMambaBlock):
            model.set_submodule(name, SplitVimBlock(module))


def _restore(model: nn.Module) -> nn.Module:
    """Return a copy with plain blocks again.

    Raises
    ------
    ModelError
        If a block does at run time what a plain one cannot do.
    """
    found = copy.deepcopy(model)
    for name, block in list(found.named_modules()):
        if not isinstance(block, SplitVimBlock):
            continue
        mixer = block.mixer
        runtime = {"gate scale": mixer.gate_scale}
        for scan in mixer.scans:
            runtime |= {"channel scale": scan.channel_scale, "state rotation": scan.state_rotation}
            if did := [what for what, value in runtime.items() if value is not None]:
                raise ModelError(f"{name}.mixer has a {did[0]}, which is not part of Vision Mamba")
        whole = VisionMambaBlock(mixer.out_proj.out_features, mixer.scans[0].A_log.shape[1], 1)
        whole.norm = block.norm
        whole.mixer.out_proj = mixer.out_proj
        kind = mixer.scans[0].conv1d.weight.dtype
        whole.mixer.in_proj = joined(f"{name}.mixer", mixer, ("states_proj", "gate_proj"), kind)
        for way in ("forward_scan", "backward_scan"):
            ours, theirs = mixer.get_submodule(way), whole.mixer.get_submodule(way)
            for part in ("conv1d", "A_log", "D", "dt_proj"):
                setattr(theirs, part, getattr(ours, part))
            theirs.x_proj = joined(f"{name}.mixer.{way}", ours, ("step_proj", "B_proj", "C_proj"), kind)
        found.set_submodule(name, whole.train(block.training))
    return found


ARCHITECTURE = Architecture(
    name="Vision Mamba",
    model_types=("vim",),
    blocks="layers",
    groups=(
        GroupSpec(("mixer.states_proj", "mixer.gate_proj"), "norm", "norm", "mixer"),
        *scan_groups("mixer.forward_scan"),
        *scan_groups("mixer.backward_scan"),
        GroupSpec(("mixer.out_proj",), parent="mixer"),
    ),
    embeddings="patch_embed",
    positions="positions",
    head="head",
    final_norm="norm_f",
    writers=("mixer.out_proj",),
    prepare=_prepare,
    restore=_restore,
)
