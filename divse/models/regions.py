"""Image encoder over features of detected regions, e.g. the 36 x 2048 of Faster R-CNN."""

from __future__ import annotations

from torch import Tensor

from divse.models.config import ImageConfig
from divse.models.features import Local, PooledEncoder


class RegionEncoder(PooledEncoder):
    """Regions as they are: they have no order, and a detector has run before.

    With `image.projection local_mlp` and `image.pool max` it is the paper's: f = fc(x) + MLP(fc(x))
    and, as the global feature, the maximum of f over the real regions.
    """

    def __init__(self, config: ImageConfig) -> None:
        super().__init__(config.region_dim, config.pool)
        self.expected = config.region_dim

    def local(self, values: Tensor, counts: Tensor) -> Local:
        """Features (B, R, C), padded, and how many regions each picture has, (B,)."""
        if values.shape[2] != self.expected:
            raise ValueError(
                f"regions: got features of {values.shape[2]} channels, the model reads "
                f"{self.expected}: --image.region_dim {values.shape[2]}"
            )
        return Local(values.float(), counts)


def regions(config: ImageConfig, pretrained: bool = True) -> RegionEncoder:
    """Build the encoder; it has no weights of its own."""
    if "detail" in config.pool:
        raise ValueError("image.pool detail is a map; regions can be pooled by mean and max")
    return RegionEncoder(config)
