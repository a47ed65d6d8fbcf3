"""Attention maps of heads, towers and whole models."""

import numpy as np
import pytest
import tiny
import torch
from test_heads import build

from divse import DivSE
from divse.encoder import build_tokenizer, vocabulary_size
from divse.models import HEADS, TwoTower
from divse.models.positions import sine_positions
from divse.training.command_line import parse


def encoder(**changes):
    torch.manual_seed(0)
    config = parse(tiny.arguments(**changes))[0]
    tokenizer = build_tokenizer(config.text, tiny.CAPTIONS)
    return DivSE(TwoTower(config, vocabulary_size(tokenizer)).eval(), config, tokenizer)


@pytest.mark.parametrize("name", HEADS)
def test_maps_sum_to_one_and_are_zero_on_padding(name):
    head = build(name, blocks=3, shared=False)
    inputs, mask = torch.randn(2, 7, 10), torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4:] = False
    maps = head.attend(inputs, mask, sine_positions(7, 10, inputs))
    assert maps.shape == (2, 3, 7)
    torch.testing.assert_close(maps.sum(2), torch.ones(2, 3))
    assert (maps[1, :, 4:] == 0).all() and (maps[0] > 0).all()


@pytest.mark.parametrize("name", sorted(set(HEADS) - {"pie_net"}))  # it reads `attend` itself
def test_maps_are_those_that_the_last_block_reads_with(name):
    head = build(name, **({} if name == "pooling" else {"blocks": 3}))
    attention = head.attention if name == "pooling" else head.blocks[0].attention
    seen = []
    attention.register_forward_hook(
        lambda module, arguments, _: seen.append(module.attend(*arguments))
    )
    inputs = torch.randn(1, 5, 10)
    head(inputs)
    last = seen[-1]
    torch.testing.assert_close(head.attend(inputs), last.mean(1))


def test_slots_compete_for_every_input():
    """Before they are renormalised the weights of an input sum to one over the slots."""
    head = build("set_prediction", blocks=1)
    inputs = torch.randn(1, 6, 10)
    memory = head.blocks[0].memory(inputs, None)
    head.blocks[0].attention.weights = lambda logits, mask: logits.softmax(dim=2)
    raw = head.blocks[0].attend(head.slots[None], memory, None)
    torch.testing.assert_close(raw.sum(2), torch.ones(1, 2, 6))


def test_a_model_gives_maps_on_its_grid():
    model = encoder(model__k=3)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (20, 30, 3), dtype=np.uint8) for _ in range(2)]
    maps = model.attend_images(pictures)
    assert maps.shape == (2, 3, 2, 2) and not maps.requires_grad
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 3))
    torch.testing.assert_close(maps[1:], model.attend_images(pictures[1:]))
    with pytest.raises(ValueError, match="wrap a single one"):
        model.attend_images("picture.png")


def test_patches_of_a_vit_are_a_grid():
    model = encoder(image__encoder="timm", image__name="test_vit", image__size=160)
    maps = model.attend_images([np.zeros((30, 20, 3), np.uint8)])
    assert maps.shape == (1, 2, 10, 10)
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(1, 2))


def test_a_model_of_regions_gives_maps_over_them():
    model = encoder(image__encoder="regions", image__region_dim=6)
    regions = [torch.randn(n, 6).numpy() for n in (3, 5)]
    maps = model.attend_images(regions)
    assert maps.shape == (2, 2, 5) and (maps[0, :, 3:] == 0).all()
    torch.testing.assert_close(maps.sum(2), torch.ones(2, 2))
