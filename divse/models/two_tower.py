"""The two-tower model: pictures and captions, each embedded as a set of K unit vectors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from divse.models.config import HeadConfig, ImageConfig, TextConfig, TwoTowerConfig
from divse.models.features import Encoder, Local, Standardize
from divse.models.heads import HEADS
from divse.models.image import IMAGE_ENCODERS
from divse.models.slot_attention import length_mask
from divse.models.text import TEXT_ENCODERS


class SetOutput(NamedTuple):
    """Sets (B, K, D) of unit vectors, and the slots (B, K, D) before the global feature."""

    sets: Tensor
    slots: Tensor


class Tower(nn.Module):
    """One modality: encoder, head, and the global feature that every element shares.

    The set is normalize(LN(slots) + LN(global)): slots carry what differs between the elements,
    the global feature what they have in common.
    """

    def __init__(
        self, encoder: Encoder, config: HeadConfig, source: ImageConfig | TextConfig
    ) -> None:
        super().__init__()
        if source.frozen:
            encoder.freeze()
        self.encoder = encoder
        self.head = HEADS[config.head](config, encoder.input_dim)
        nn.init.constant_(self.head.get_parameter("norm.weight"), config.gate)
        groups = encoder.pooled_groups
        self.standardize = Standardize(groups) if source.center else None
        self.project = nn.Linear(sum(groups), config.dim)
        if sum(groups) <= config.dim:  # then it can keep the geometry of a pretrained feature
            nn.init.orthogonal_(self.project.weight)
            nn.init.zeros_(self.project.bias)
        self.dropout = nn.Dropout(source.global_dropout)
        self.norm = nn.LayerNorm(config.dim)
        self.positions = config.positions == "sine"
        self.hide = source.input_dropout

    def local(self, *raw: Tensor) -> Local:
        """Raw input -> local features; what a frozen encoder computes once."""
        local: Local = self.encoder.local(*raw)  # type: ignore[operator]
        return local

    def forward(self, *raw: Tensor) -> SetOutput:
        """Raw input -> sets."""
        return self.embed(self.local(*raw))

    def embed(self, local: Local) -> SetOutput:
        """Local features -> sets."""
        mask = self.visible(local)
        inputs, pooled, positions = self.encoder(local, mask)
        slots = self.head(inputs, mask, positions if self.positions else None)
        if self.standardize is not None:
            pooled = self.standardize(pooled)
        common = self.norm(self.project(self.dropout(pooled)))
        sets = F.normalize((slots + common[:, None]).float(), dim=-1)
        return SetOutput(sets, slots)

    def visible(self, local: Local) -> Tensor | None:
        """Mask (B, N) of the inputs that are real and not hidden by dropout; None if all are."""
        values, lengths = local
        mask = length_mask(lengths, values.shape[1])
        if not (self.training and self.hide):
            return mask
        seen = torch.rand(values.shape[:2], device=values.device) >= self.hide
        seen[:, 0] = True  # never an empty set of inputs
        return seen if mask is None else seen & mask


class TwoTower(nn.Module):
    """Image and text towers of one embedding space.

    Args:
        config: Shapes and encoders.
        vocabulary: Number of words, for text encoders that own their word embeddings.
        pretrained: Read backbone weights from their files; False builds the shape alone, for
            weights that are loaded next.

    """

    def __init__(
        self, config: TwoTowerConfig, vocabulary: int = 0, pretrained: bool = True
    ) -> None:
        super().__init__()
        image = IMAGE_ENCODERS[config.image.encoder](config.image, pretrained)
        text = TEXT_ENCODERS[config.text.encoder](config.text, vocabulary, pretrained)
        self.image = Tower(image, config.model, config.image)
        self.text = Tower(text, config.model, config.text)

    def images(self, pixels: Tensor) -> SetOutput:
        """Pixels, uint8 (B, 3, S, S) -> sets (B, K, D)."""
        output: SetOutput = self.image(pixels)
        return output

    def texts(self, tokens: Tensor, lengths: Tensor) -> SetOutput:
        """Tokens (B, L) and lengths (B,) -> sets (B, K, D)."""
        output: SetOutput = self.text(tokens, lengths)
        return output

    def trained_state(self) -> dict[str, Tensor]:
        """State dict without what frozen backbones hold."""
        frozen = self.frozen_state()
        return {name: t for name, t in self.state_dict().items() if name not in frozen}

    def frozen_state(self) -> dict[str, Tensor]:
        """The part of the state dict that training never changes."""
        backbones = tuple(
            f"{side}.encoder.backbone."
            for side, tower in (("image", self.image), ("text", self.text))
            if tower.encoder.frozen
        )
        return {n: t for n, t in self.state_dict().items() if backbones and n.startswith(backbones)}
