"""The two-tower model: pictures and captions, each embedded as a set of K unit vectors."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from divse.models.config import HeadConfig, ImageConfig, TextConfig, TwoTowerConfig
from divse.models.features import Encoder, Local, Standardize
from divse.models.heads import HEADS
from divse.models.image import IMAGE_ENCODERS
from divse.models.learned_similarity import learned_similarity
from divse.models.positions import positions
from divse.models.projection import build_projection, project_global
from divse.models.slot_attention import length_mask
from divse.models.text import TEXT_ENCODERS


class SetOutput(NamedTuple):
    """Sets (B, K, D) of unit vectors, and the slots (B, K, D) before the global feature."""

    sets: Tensor
    slots: Tensor


class Reading(NamedTuple):
    """Arguments of a head: inputs (B, N, C), mask (B, N) or None, positions or None."""

    inputs: Tensor
    mask: Tensor | None
    positions: Tensor | None


class Tower(nn.Module):
    """One modality: encoder, head, and the global feature that every element shares.

    The set is normalize(LN(slots) + LN(global)), with PIE-Net normalize(LN(slots + global)): slots
    carry what differs between the elements, the global feature what they have in common.
    """

    def __init__(
        self, encoder: Encoder, config: HeadConfig, source: ImageConfig | TextConfig
    ) -> None:
        super().__init__()
        if source.frozen:
            encoder.freeze()
        else:
            encoder.tune(source.tuned_blocks)
        self.encoder = encoder
        self.projection = build_projection(
            source.projection, encoder.input_dim, config.dim, source.projection_dropout
        )
        if self.projection is not None:
            encoder.project_to(config.dim)
        self.head = HEADS[config.head](config, encoder.input_dim)
        self.norm_after = bool(getattr(self.head, "norm_after", False))
        if not self.norm_after:
            nn.init.constant_(self.head.get_parameter("norm.weight"), config.gate)
        groups = encoder.pooled_groups
        self.standardize = Standardize(groups) if source.center else None
        self.project = project_global(source.projection, groups, config.dim)
        self.dropout = nn.Dropout(source.global_dropout)
        self.norm = nn.LayerNorm(config.dim)
        use_positions = not isinstance(source, ImageConfig) or source.positions
        self.positions = config.positions if use_positions else "none"
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
        reading, pooled = self._read(local)
        slots = self.head(*reading)
        if self.standardize is not None:
            pooled = self.standardize(pooled)
        common = self.project(self.dropout(pooled))[:, None]
        joined = self.norm(slots + common) if self.norm_after else slots + self.norm(common)
        return SetOutput(F.normalize(joined.float(), dim=-1), slots)

    def attend(self, *raw: Tensor) -> Tensor:
        """Raw input -> attention map of each element (B, K, N): zero on padding, sum 1 over N."""
        reading, _ = self._read(self.local(*raw))
        attend: Any = self.head.attend
        weights: Tensor = attend(*reading)
        return weights

    def _read(self, local: Local) -> tuple[Reading, Tensor]:
        """What the head reads, and the global feature (B, G)."""
        if self.projection is not None:
            real = length_mask(local.lengths, local.values.shape[1])
            local = local._replace(values=self.projection(local.values, real))
        mask = self.visible(local)
        inputs, pooled = self.encoder(local, mask)
        shape: Any = self.encoder.shape
        places = positions(self.positions, shape, inputs, local.lengths)
        return Reading(inputs, mask, places), pooled

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
        similarity: Name of the similarity; one with learned parameters gets them here.

    """

    def __init__(
        self,
        config: TwoTowerConfig,
        vocabulary: int = 0,
        pretrained: bool = True,
        similarity: str = "",
    ) -> None:
        super().__init__()
        image = IMAGE_ENCODERS[config.image.encoder](config.image, pretrained)
        text = TEXT_ENCODERS[config.text.encoder](config.text, vocabulary, pretrained)
        self.image = Tower(image, config.model, config.image)
        self.text = Tower(text, config.model, config.text)
        self.similarity = learned_similarity(similarity)

    def images(self, *inputs: Tensor) -> SetOutput:
        """Pixels, uint8 (B, 3, S, S), or regions (B, R, C) and counts (B,) -> sets (B, K, D)."""
        output: SetOutput = self.image(*inputs)
        return output

    def texts(self, tokens: Tensor, lengths: Tensor) -> SetOutput:
        """Tokens (B, L) and lengths (B,) -> sets (B, K, D)."""
        output: SetOutput = self.text(tokens, lengths)
        return output

    def similarity_parameters(self) -> dict[str, Tensor]:
        """Learned keyword arguments of divse.score, differentiable; none for most similarities."""
        return dict(self.similarity.named_parameters()) if self.similarity is not None else {}

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
