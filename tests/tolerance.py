"""The one tolerance of all implementations: as good as fp32 torch on the same rounded inputs."""

import numpy as np
import torch

EPS32 = float(np.finfo(np.float32).eps)


def _float64(x) -> np.ndarray:
    return x.detach().cpu().double().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, "f8")


def assert_close_to_float64(result, reference32, reference64, scale=1.0) -> None:
    """Assert err(result) <= 2 err(reference32) + 8 eps32 scale, both against reference64."""
    result, plain, exact = (_float64(x) for x in (result, reference32, reference64))
    assert result.shape == exact.shape, f"got shape {result.shape}, expected {exact.shape}"
    assert np.isfinite(exact).all()
    allowed = 2 * np.abs(plain - exact).max() + 8 * EPS32 * scale
    error = np.abs(result - exact).max()
    assert error <= allowed, f"error {error:.3g} against float64, allowed {allowed:.3g}"
