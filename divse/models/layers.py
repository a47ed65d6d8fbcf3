"""The blocks of a backbone, for tuning it partly and for learning rates that fall with depth.

Depth counts from the head: 0 is the last block and what comes after it, the embeddings or the stem
are the deepest.
"""

from __future__ import annotations

import re

from torch import nn

# `layer1.0.`, `blocks.3.`, `stages.2.`, `encoder.layer.11.`, `encoder.layers.5.`
BLOCK = re.compile(r"(?:^|\.)(?:layer|blocks?|stages?|layers)(\d+)?\.(\d+)\.")
BOTTOM = re.compile(r"embed|patch|stem|^conv1\b|^bn1\b|pre_?la?y|norm_pre|cls_token|reg_token")


def depths(backbone: nn.Module) -> dict[str, int]:
    """Depth of every parameter of a backbone."""
    places = {name: place(name) for name, _ in backbone.named_parameters()}
    blocks = sorted({found for found in places.values() if isinstance(found, tuple)})
    depth_of = {block: len(blocks) - 1 - i for i, block in enumerate(blocks)}
    bottom = len(blocks)
    return {
        name: depth_of[found] if isinstance(found, tuple) else (bottom if found == "bottom" else 0)
        for name, found in places.items()
    }


def place(name: str) -> tuple[int, int] | str:
    """Where a parameter lies: its block (stage, number), or before ("bottom") or after ("top")."""
    bare = re.sub(r"^(?:network|text_model|vision_model|trunk|visual)\.", "", name)
    block = BLOCK.search(bare)
    if block:
        return int(block[1] or 0), int(block[2])
    return "bottom" if BOTTOM.search(bare) else "top"


def freeze_below(backbone: nn.Module, blocks: int) -> None:
    """Fix all but the last `blocks` blocks and what comes after them; 0 fixes everything."""
    known = depths(backbone)
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(known[name] < blocks)


def scales(backbone: nn.Module, decay: float) -> dict[str, float]:
    """Learning rate of every parameter of a backbone as a multiple: decay ** depth."""
    return {name: decay**depth for name, depth in depths(backbone).items()}
