"""The learned projection of local features, before they are pooled and read by the head.

    linear: f = fc(x)
    MLP:    f = fc(x) + MLP(fc(x)), MLP = linear to half the width, BatchNorm, ReLU, linear back

The published code's, for grids and regions. Padding never reaches the statistics of the BatchNorm.
"""

from __future__ import annotations

from torch import Tensor, nn


class LocalProjection(nn.Module):
    """Local features (B, N, C) -> (B, N, D).

    Args:
        input_dim: C.
        dim: D.
        mlp: Add the MLP.
        dropout: On the result.

    """

    def __init__(self, input_dim: int, dim: int, mlp: bool, dropout: float) -> None:
        super().__init__()
        half = max(1, dim // 2)
        self.fc = nn.Linear(input_dim, dim)
        self.mlp = (
            nn.Sequential(
                nn.Linear(dim, half), nn.BatchNorm1d(half), nn.ReLU(), nn.Linear(half, dim)
            )
            if mlp
            else None
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """Project the inputs that `mask` (B, N) says are real; the others become zero."""
        if mask is None or self.mlp is None:
            return self.project(values.flatten(0, 1)).view(*values.shape[:2], -1)
        rows = self.project(values[mask])
        result = rows.new_zeros(*mask.shape, rows.shape[1])
        return result.masked_scatter(mask[:, :, None], rows)

    def project(self, rows: Tensor) -> Tensor:
        """Rows (n, C) -> (n, D)."""
        rows = self.fc(rows)
        if self.mlp is not None:
            rows = rows + self.mlp(rows)
        projected: Tensor = self.dropout(rows)
        return projected


def build_projection(kind: str, input_dim: int, dim: int, dropout: float) -> LocalProjection | None:
    """Make the projection that a setting names; None where local features stay as they are."""
    if kind not in ("local", "local_mlp"):
        return None
    return LocalProjection(input_dim, dim, kind == "local_mlp", dropout)


def project_global(kind: str, groups: tuple[int, ...], dim: int) -> nn.Module:
    """Layer from the global feature (B, G) to (B, D): none where it has D dimensions by design."""
    size = sum(groups)
    if kind != "global" and size == dim:
        return nn.Identity()
    if kind == "none":
        raise ValueError(
            f"projection none: the global feature has {size} dimensions, model.dim is {dim}; "
            "make them equal, or set projection to global"
        )
    layer = nn.Linear(size, dim)
    if size <= dim:  # then it can keep the geometry of a pretrained feature
        nn.init.orthogonal_(layer.weight)
        nn.init.zeros_(layer.bias)
    return layer
