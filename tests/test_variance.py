"""Circular variance against values worked out by hand."""

import math

import numpy as np
import pytest
import torch

from divse.evaluation import circular_variance, log_variance
from divse.sets import EmbeddingSets


def test_by_hand():
    values = np.array(
        [
            [[1.0, 0.0], [1.0, 0.0]],  # one direction: 0
            [[1.0, 0.0], [0.0, 1.0]],  # orthogonal: 1 - sqrt(2)/2
            [[1.0, 0.0], [-1.0, 0.0]],  # opposite: 1
        ]
    )
    expected = [0.0, 1 - math.sqrt(0.5), 1.0]
    assert circular_variance(EmbeddingSets(values)) == pytest.approx(expected, abs=1e-15)
    assert log_variance(EmbeddingSets(values)) == pytest.approx(math.log(np.mean(expected)))


def test_orthogonal_set_of_four():
    sets = EmbeddingSets(torch.eye(8)[None, :4])
    assert log_variance(sets) == pytest.approx(math.log(1 - math.sqrt(4) / 4))


def test_small_spread_survives_rounding():
    angle = 1e-5  # 1 - cos(angle / 2) = 1.25e-11, far below fp32's resolution near 1
    values = np.array([[[1.0, 0.0], [math.cos(angle), math.sin(angle)]]])
    assert circular_variance(EmbeddingSets(values))[0] == pytest.approx(1.25e-11, rel=1e-4)


def test_single_vectors_have_no_variance():
    sets = EmbeddingSets.of(torch.randn(5, 1, 7, generator=torch.Generator().manual_seed(0)))
    assert circular_variance(sets).tolist() == [0.0] * 5
    assert log_variance(sets) == -math.inf


def test_padding_does_not_matter():
    values = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([2, 4, 1])
    padded = EmbeddingSets.of(values, lengths)
    dirty = padded.values.clone()
    dirty[0, 2:], dirty[2, 1:] = torch.nan, 1e30
    got = circular_variance(EmbeddingSets(dirty, lengths))
    expected = [circular_variance(padded[i : i + 1]).item() for i in range(3)]
    alone = circular_variance(EmbeddingSets.of(values[:1, :2])).item()
    assert got.tolist() == expected
    assert got[0] == pytest.approx(alone, rel=1e-6)
    assert got[2] == 0.0


def test_half_precision_and_rotation():
    values = torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(2))
    sets = EmbeddingSets.of(values)
    rotation, _ = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3)))
    turned = EmbeddingSets.of(values @ rotation)
    assert circular_variance(turned) == pytest.approx(circular_variance(sets), rel=1e-5)
    half = EmbeddingSets(sets.values.half())
    assert circular_variance(half) == pytest.approx(circular_variance(sets), abs=1e-3)
