"""Image encoders: pictures as uint8 (B, 3, S, S) -> a grid of local features (B, N, C)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from divse.models.config import ImageConfig
from divse.models.features import Encoder, Features, Local
from divse.models.slot_attention import grid_positions

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class GridEncoder(Encoder):
    """A backbone whose last feature map is the grid; the global feature is the grid's mean.

    Args:
        backbone: Normalised pixels (B, 3, S, S) -> feature map (B, C, h, w).
        channels: C.
        mean: Per-channel mean of the pixels, in 0..1.
        std: Per-channel standard deviation of the pixels, in 0..1.

    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        channels: int,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.input_dim = self.pooled_dim = channels
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def local(self, pixels: Tensor) -> Local:
        """Pixels, uint8 (B, 3, S, S) -> grid (B, h w, C), row by row."""
        grid = self.backbone((pixels.float() / 255 - self.mean) / self.std)
        return Local(grid.flatten(2).transpose(1, 2).contiguous())

    def forward(self, local: Local) -> Features:
        """Grid -> features with its mean and the positions of a square grid."""
        count, channels = local.values.shape[1:]
        positions = grid_positions(round(count**0.5), channels, local.values)
        return Features(local.values, None, local.values.mean(dim=1), positions)


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def cnn(config: ImageConfig, pretrained: bool = True) -> GridEncoder:
    """Small CNN, trained from scratch: 64 x 64 pixels -> an 8 x 8 grid."""
    if config.size % 8:
        raise ValueError(
            f"image.size is {config.size}, the cnn halves a picture three times: "
            "give a multiple of 8"
        )
    width = config.width
    backbone = nn.Sequential(
        convolution(3, width // 4, stride=2),
        convolution(width // 4, width // 2),
        convolution(width // 2, width // 2, stride=2),
        convolution(width // 2, width),
        convolution(width, width, stride=2),
        convolution(width, width),
    )
    return GridEncoder(backbone, width)


class TimmMap(nn.Module):
    """The last feature map (B, C, h, w) of a timm model, whatever its family calls it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels -> feature map; a ViT's patch tokens are folded into a square."""
        features: Tensor = self.network.forward_features(pixels)  # type: ignore[operator]
        if features.ndim == 4:
            return features
        patches = features[:, int(getattr(self.network, "num_prefix_tokens", 0)) :]
        samples, count, channels = patches.shape
        side = round(count**0.5)
        return patches.transpose(1, 2).reshape(samples, channels, side, side)


def timm_grid(config: ImageConfig, pretrained: bool = True) -> GridEncoder:
    """Grid of a timm backbone; weights come from a local file, never from the network."""
    import timm

    source = {"file": weights_file(config.weights)} if pretrained and config.weights else None
    network = timm.create_model(
        config.name,
        pretrained=source is not None,
        pretrained_cfg_overlay=source,
        num_classes=0,
    )
    statistics = network.pretrained_cfg
    return GridEncoder(
        TimmMap(network),
        network.num_features,
        tuple(statistics.get("mean", IMAGENET_MEAN)),
        tuple(statistics.get("std", IMAGENET_STD)),
    )


def weights_file(path: str) -> str:
    """Return the path if it is a file; say what is missing if it is not."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"image.weights: no file at {path}")
    return path


# name -> factory(config, pretrained): with pretrained=False only the shape is built
IMAGE_ENCODERS: dict[str, Callable[..., Encoder]] = {
    "cnn": cnn,
    "timm": timm_grid,
}
