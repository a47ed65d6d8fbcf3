import math
from pathlib import Path

import numpy as np
import pytest
import torch

from divse.models.config import HeadConfig
from divse.models.heads import SetPrediction
from divse.models.positions import grid_positions, sine_positions
from divse.models.slot_attention import competing_weights, length_mask, pooling_weights

GOLDEN = np.load(Path(__file__).parent / "golden" / "published_code.npz")
# key of the published checkpoints -> ours
PUBLISHED = {
    "latents": "slots",
    "layers.0.0.fn.to_q.weight": "blocks.0.attention.query.weight",
    "layers.0.0.fn.to_k.weight": "blocks.0.attention.key.weight",
    "layers.0.0.fn.to_v.weight": "blocks.0.attention.value.weight",
    "layers.0.0.fn.to_out.0.weight": "blocks.0.attention.out.weight",
    "layers.0.0.fn.to_out.0.bias": "blocks.0.attention.out.bias",
    "layers.0.0.norm.weight": "blocks.0.norm_slots.weight",
    "layers.0.0.norm.bias": "blocks.0.norm_slots.bias",
    "layers.0.0.norm_context.weight": "blocks.0.norm_inputs.weight",
    "layers.0.0.norm_context.bias": "blocks.0.norm_inputs.bias",
    "layers.0.2.fn.net.0.weight": "blocks.0.feedforward.0.weight",
    "layers.0.2.fn.net.0.bias": "blocks.0.feedforward.0.bias",
    "layers.0.2.fn.net.3.weight": "blocks.0.feedforward.3.weight",
    "layers.0.2.fn.net.3.bias": "blocks.0.feedforward.3.bias",
    "layers.0.2.norm.weight": "blocks.0.norm_feedforward.weight",
    "layers.0.2.norm.bias": "blocks.0.norm_feedforward.bias",
    "last_layer.0.weight": "norm.weight",
    "last_layer.0.bias": "norm.bias",
}


@pytest.fixture
def published():
    """Our block with the weights of the published code."""
    config = HeadConfig(k=4, dim=64, blocks=4, heads=4, head_dim=512, feedforward=4)
    block = SetPrediction(config, input_dim=48).eval()
    prefix = "block_param/"
    keys = [name.removeprefix(prefix) for name in GOLDEN.files if name.startswith(prefix)]
    weights = {PUBLISHED[key]: torch.from_numpy(GOLDEN[prefix + key]) for key in keys}
    block.load_state_dict(weights)
    return block


def test_published_block(published):
    output = published(torch.from_numpy(GOLDEN["block_inputs"]))
    torch.testing.assert_close(output, torch.from_numpy(GOLDEN["block_output"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("padding", [0.0, 1e4, math.nan, math.inf])
def test_padding_changes_nothing(published, padding):
    """The defect of the published code: slot mass must not fall on padding, whatever it holds."""
    inputs = torch.from_numpy(GOLDEN["block_inputs"])
    alone = published(inputs[:, :5])
    padded = torch.cat([inputs[:, :5], torch.full((3, 3, 48), padding)], dim=1)
    mask = length_mask(torch.tensor([5, 5, 5]), 8)
    torch.testing.assert_close(published(padded, mask), alone, atol=1e-6, rtol=1e-6)


def test_padding_gets_no_gradient(published):
    inputs = torch.from_numpy(GOLDEN["block_inputs"]).clone().requires_grad_()
    lengths = torch.tensor([9, 4, 1])
    published(inputs, length_mask(lengths, 9)).square().sum().backward()
    padding = ~length_mask(lengths, 9)
    assert (inputs.grad[padding] == 0).all()
    assert (inputs.grad[~padding] != 0).any(dim=1).all()


def test_ragged_batch_equals_single(published):
    inputs = torch.from_numpy(GOLDEN["block_inputs"])
    lengths = torch.tensor([9, 4, 1])
    batch = published(inputs, length_mask(lengths, 9))
    for row, length in enumerate(lengths.tolist()):
        alone = published(inputs[row : row + 1, :length])
        torch.testing.assert_close(batch[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_without_positions_the_order_of_inputs_is_nothing(published):
    inputs = torch.from_numpy(GOLDEN["block_inputs"])
    shuffled = inputs[:, torch.randperm(9)]
    torch.testing.assert_close(published(shuffled), published(inputs), atol=1e-5, rtol=1e-5)


def test_slots_compete():
    logits = torch.randn(2, 3, 4, 5)
    mask = length_mask(torch.tensor([5, 2]), 5)
    weights = competing_weights(logits, mask)
    torch.testing.assert_close(weights.sum(dim=3), torch.ones(2, 3, 4))
    assert (weights[1, :, :, 2:] == 0).all()
    # raising one slot's interest in an input takes that input from the other slots
    more = logits.clone()
    more[:, :, 0, 0] += 5
    assert (competing_weights(more, mask)[:, :, 1:, 0] < weights[:, :, 1:, 0]).all()
    # ordinary pooling: queries do not see each other
    apart = pooling_weights(more, mask)[:, :, 1:]
    torch.testing.assert_close(apart, pooling_weights(logits, mask)[:, :, 1:])


def test_shared_blocks_have_the_weights_of_one():
    shared = SetPrediction(HeadConfig(dim=16, head_dim=4, blocks=3, shared=True), 8)
    own = SetPrediction(HeadConfig(dim=16, head_dim=4, blocks=3, shared=False), 8)
    assert len(shared.blocks) == 1 and len(own.blocks) == 3
    own.load_state_dict(
        {k: v for k, v in shared.state_dict().items() if not k.startswith("blocks")}
        | {f"blocks.{i}.{k}": v for i in range(3) for k, v in shared.blocks[0].state_dict().items()}
    )
    inputs = torch.randn(2, 5, 8)
    shared.eval(), own.eval()
    torch.testing.assert_close(shared(inputs), own(inputs))


@pytest.mark.parametrize("dim", [2, 6, 7])
def test_positions(dim):
    like = torch.zeros(1)
    line = sine_positions(5, dim, like)
    assert line.shape == (5, dim) and line.abs().max() <= 1
    grid = grid_positions(3, 3, dim, like)
    assert grid.shape == (9, dim)
    assert len(torch.unique(grid_positions(3, 3, 8, like), dim=0)) == 9
