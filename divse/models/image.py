"""Image encoders: pictures as uint8 (B, 3, S, S) -> a grid of local features (B, N, C)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from divse.models.config import ImageConfig
from divse.models.features import Encoder, Features, Local
from divse.models.slot_attention import grid_positions

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class GridEncoder(Encoder):
    """A backbone whose last feature map is the grid; the global feature is pooled from it.

    Args:
        backbone: Normalised pixels (B, 3, S, S) -> feature map (B, C, h, w).
        shape: (C, h, w) of its map.
        pool: Parts of the global feature, see POOLS.
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
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        # the layout in which CPU convolutions are fast, and in which a grid is a view
        self.backbone = backbone.to(memory_format=torch.channels_last)
        self.input_dim, self.rows, self.columns = shape
        self.pool = tuple(pool)
        self.channels = self.input_dim - detail
        dims = {"detail": detail * self.rows * self.columns}
        self.pooled_groups = tuple(dims.get(name, self.channels) for name in self.pool)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def local(self, pixels: Tensor) -> Local:
        """Pixels, uint8 (B, 3, S, S) -> grid (B, h w, C), row by row."""
        scaled = (pixels.float() / 255 - self.mean) / self.std
        grid = self.backbone(scaled.contiguous(memory_format=torch.channels_last))
        return Local(grid.flatten(2).transpose(1, 2).contiguous())

    def forward(self, local: Local, mask: Tensor | None) -> Features:
        """Pool the grid; the global feature also sees the cells that `mask` hides."""
        grid, detail = torch.tensor_split(local.values, [self.channels], dim=2)
        parts = {"mean": grid.mean(dim=1), "max": grid.amax(dim=1), "detail": detail.flatten(1)}
        pooled = torch.cat([parts[name] for name in self.pool], dim=1)
        positions = grid_positions(self.rows, self.columns, self.input_dim, grid)
        return Features(local.values, pooled, positions)


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
    backbone = TimmMap(network, config.level).eval()
    with torch.no_grad():
        shape = backbone(torch.zeros(1, 3, config.size, config.size)).shape[1:]
    statistics = network.pretrained_cfg
    return GridEncoder(
        backbone,
        shape,
        config.pool,
        shape[0] - network.num_features if config.level >= 0 else 0,
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
