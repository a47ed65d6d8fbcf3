import math
from dataclasses import replace

import pytest
import torch

from divse.models import HEADS
from divse.models.config import HeadConfig
from divse.models.positions import sine_positions
from divse.models.slot_attention import length_mask

SMALL = HeadConfig(k=3, dim=16, blocks=2, heads=2, head_dim=4, feedforward=2)


def build(name, **changes):
    torch.manual_seed(0)
    return HEADS[name](replace(SMALL, head=name, **changes), 10).eval()


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("k", [1, 3, 32])
def test_shape_and_gradients(name, k):
    head = build(name, k=k).train()
    inputs = torch.randn(2, 7, 10, requires_grad=True)
    output = head(inputs, None, sine_positions(7, 10, inputs))
    assert output.shape == (2, k, 16)
    (output * torch.randn_like(output)).sum().backward()
    assert inputs.grad.abs().sum() > 0
    for parameter, tensor in head.named_parameters():
        assert tensor.grad is not None, parameter


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("padding", [0.0, math.nan])
def test_padding_changes_nothing(name, padding):
    head = build(name)
    inputs = torch.randn(2, 4, 10)
    padded = torch.cat([inputs, torch.full((2, 5, 10), padding)], dim=1)
    mask = length_mask(torch.tensor([4, 4]), 9)
    positions = sine_positions(9, 10, inputs)
    torch.testing.assert_close(
        head(padded, mask, positions), head(inputs, None, positions[:4]), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("name", sorted(set(HEADS) - {"pie_net"}))  # it has no keys
def test_positions_reach_the_keys(name):
    head = build(name)
    inputs = torch.randn(2, 5, 10)
    assert not torch.allclose(head(inputs), head(inputs, None, sine_positions(5, 10, inputs)))


@pytest.mark.parametrize("name", HEADS)
def test_elements_differ(name):
    output = build(name)(torch.randn(2, 5, 10))
    assert (output[:, 0] - output[:, 1]).abs().max() > 0.1


def test_one_pooled_vector_of_equal_storage():
    pooled = build("pooling", k=1, dim=4 * SMALL.dim)
    sets = build("set_prediction", k=4)
    inputs = torch.randn(2, 5, 10)
    assert pooled(inputs).numel() == sets(inputs).numel()
