"""Image encoders: pictures as uint8 (B, 3, S, S) -> a grid of local features (B, N, C)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from divse.models.config import ImageConfig
from divse.models.features import Encoder, Features, Local, PooledEncoder
from divse.models.pretrained import model_folder, timm_model, transformers_model
from divse.models.regions import regions

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class GridEncoder(PooledEncoder):
    """A backbone whose last feature map is the grid; the global feature is pooled from it.

    Args:
        backbone: Normalised pixels (B, 3, S, S) -> feature map (B, C, h, w).
        shape: (C, h, w) of its map.
        pool: Parts of the global feature: mean, max, detail.
        detail: How many of the channels, the last ones, are those of an earlier feature map.
        mean: Per-channel mean of the pixels, in 0..1.
        std: Per-channel standard deviation of the pixels, in 0..1.

    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        shape: Sequence[int],
        pool: Sequence[str] = ("mean",),
        detail: int = 0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        channels, rows, columns = shape
        self.detail, self.shape = detail, (rows, columns)
        super().__init__(channels, pool)
        # the layout in which CPU convolutions are fast, and in which a grid is a view
        self.backbone = backbone.to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def project_to(self, dim: int) -> None:
        """Expect local features of `dim` channels, the earlier map's among them."""
        assert self.shape
        self.input_dim, self.channels = dim, dim - self.detail
        dims = {"detail": self.detail * self.shape[0] * self.shape[1]}
        self.pooled_groups = tuple(dims.get(name, self.channels) for name in self.pool)

    def local(self, pixels: Tensor) -> Local:
        """Pixels, uint8 (B, 3, S, S) -> grid (B, h w, C), row by row."""
        scaled = (pixels.float() / 255 - self.mean) / self.std
        grid = self.backbone(scaled.contiguous(memory_format=torch.channels_last))
        return Local(grid.flatten(2).transpose(1, 2).contiguous())

    def forward(self, local: Local, mask: Tensor | None) -> Features:
        """Pool the grid; the global feature also sees the cells that `mask` hides."""
        grid, detail = torch.tensor_split(local.values, [self.channels], dim=2)
        parts = {"mean": grid.mean(dim=1), "max": grid.amax(dim=1), "detail": detail.flatten(1)}
        return Features(local.values, torch.cat([parts[name] for name in self.pool], dim=1))


def convolution(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def cnn(config: ImageConfig, pretrained: bool = True) -> GridEncoder:
    """Small CNN, trained from scratch: 64 x 64 pixels -> an 8 x 8 grid."""
    if config.size % 8:
        raise ValueError(f"image.size is {config.size}; the cnn needs a multiple of 8")
    width, side = config.width, config.size // 8
    backbone = nn.Sequential(
        convolution(3, width // 2, size=6, stride=4),
        convolution(width // 2, width),
        convolution(width, width, stride=2),
        convolution(width, width),
    )
    return GridEncoder(backbone, (width, side, side), config.pool)


def square(tokens: Tensor, prefix: int) -> Tensor:
    """Fold the patch tokens of a ViT (B, prefix + N, C) into a map (B, C, h, w), h = w."""
    patches = tokens[:, prefix:]
    samples, count, channels = patches.shape
    side = round(count**0.5)
    return patches.transpose(1, 2).reshape(samples, channels, side, side)


class TimmMap(nn.Module):
    """The last feature map (B, C, h, w) of a timm model, whatever its family calls it.

    Args:
        network: The model.
        level: Index of an earlier feature map, averaged to the same h x w and joined; -1 for none.

    """

    def __init__(self, network: nn.Module, level: int = -1) -> None:
        super().__init__()
        self.network, self.level = network, level

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels -> feature map; a ViT's patch tokens are folded into a square."""
        if self.level < 0:
            return self._square(self.network.forward_features(pixels))  # type: ignore[operator]
        last, (earlier,) = self.network.forward_intermediates(  # type: ignore[operator]
            pixels, indices=[self.level]
        )
        last = self._square(last)
        return torch.cat(
            [last, F.adaptive_avg_pool2d(earlier, (last.shape[2], last.shape[3]))], dim=1
        )

    def _square(self, features: Tensor) -> Tensor:
        if features.ndim == 4:
            return features
        return square(features, int(getattr(self.network, "num_prefix_tokens", 0)))


def timm_grid(config: ImageConfig, pretrained: bool = True) -> GridEncoder:
    """Grid of a timm backbone, e.g. ResNeXt-101 32x8d WSL, ResNet-152, or a ViT of CLIP."""
    network: Any = timm_model(config.name, config.weights, config.options, pretrained)
    backbone = TimmMap(network, config.level).eval()
    shape = map_shape(backbone, config.size)
    statistics = network.pretrained_cfg
    return GridEncoder(
        backbone,
        shape,
        config.pool,
        shape[0] - network.num_features if config.level >= 0 else 0,
        statistics.get("mean", IMAGENET_MEAN),
        statistics.get("std", IMAGENET_STD),
    )


class PatchMap(nn.Module):
    """The patch tokens of a transformers vision model, folded into a map (B, C, h, w)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        shape: Any = network.config
        self.patches = (int(shape.image_size) // int(shape.patch_size)) ** 2

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S), S as the model was made for -> feature map."""
        tokens = self.network(pixel_values=pixels).last_hidden_state
        return square(tokens, tokens.shape[1] - self.patches)


def transformer_grid(config: ImageConfig, pretrained: bool = True) -> GridEncoder:
    """Patch tokens of a transformers vision model: ViT, DINOv2, or a tower of CLIP or SigLIP."""
    network, shape = transformers_model(config.name, "vision_model", pretrained, "image.name")
    made_for = network.config.image_size  # type: ignore[union-attr]
    if config.size != made_for:
        raise ValueError(
            f"image.size is {config.size}; {config.name} reads {made_for}: --image.size {made_for}"
        )
    backbone = PatchMap(network).eval()
    mean, std = pixel_statistics(config.name)
    encoder = GridEncoder(
        backbone, map_shape(backbone, config.size), config.pool, mean=mean, std=std
    )
    encoder.config = shape
    return encoder


def pixel_statistics(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of the pixels that a transformers vision model was trained with."""
    from transformers.image_processing_utils import BaseImageProcessor

    folder = model_folder(name, "image.name")
    try:
        values, _ = BaseImageProcessor.get_image_processor_dict(
            folder, local_files_only=isinstance(folder, Path)
        )
    except OSError as error:
        raise FileNotFoundError(
            f"image.name: {name} has no preprocessor_config.json, which says how its pixels are "
            "normalised; it comes with the model, or write one with image_mean and image_std"
        ) from error
    return values["image_mean"], values["image_std"]


@torch.no_grad()
def map_shape(backbone: nn.Module, size: int) -> tuple[int, ...]:
    """(C, h, w) of the map of pictures of size x size pixels."""
    return tuple(backbone(torch.zeros(1, 3, size, size)).shape[1:])


# name -> factory(config, pretrained): with pretrained=False only the shape is built
IMAGE_ENCODERS: dict[str, Callable[..., Encoder]] = {
    "cnn": cnn,
    "timm": timm_grid,
    "transformer": transformer_grid,
    "regions": regions,
}
