from pathlib import Path

import numpy as np
import pytest
import torch

from divse import SIMILARITIES
from divse.models import SetOutput
from divse.training.config import LossConfig
from divse.training.losses import LOSSES, diversity, info_nce, mmd, set_loss, triplet

GOLDEN = {
    name: torch.from_numpy(value)
    for name, value in np.load(Path(__file__).parent / "golden" / "published_code.npz").items()
    if name.startswith("loss_")
}
OWNER = torch.arange(30) // 5
POSITIVES = torch.arange(6)[:, None] == OWNER
CONFIG = LossConfig(margin=0.2, mmd=0.01, diversity=0.01)


def golden_outputs():
    images = GOLDEN["loss_images"].clone().requires_grad_()
    texts = GOLDEN["loss_texts"].clone().requires_grad_()
    return (
        SetOutput(images, GOLDEN["loss_image_slots"]),
        SetOutput(texts, GOLDEN["loss_text_slots"]),
    )


def test_published_losses_and_gradients():
    images, texts = golden_outputs()
    parts = set_loss(images, texts, POSITIVES, CONFIG)
    parts.total.backward()
    expected = {
        "loss_total": parts.total,
        "loss_part/mmd_loss": parts.mmd,
        "loss_part/unif_loss": parts.diversity,
        "loss_grad_images": images.sets.grad,
        "loss_grad_texts": texts.sets.grad,
    }
    for name, ours in expected.items():
        torch.testing.assert_close(ours.detach(), GOLDEN[name], atol=1e-5, rtol=0, msg=name)
    both = GOLDEN["loss_part/i2t_loss"] + GOLDEN["loss_part/t2i_loss"]
    torch.testing.assert_close(parts.ranking.detach(), both, atol=1e-5, rtol=0)


@pytest.mark.parametrize("impl", ["reference", "native"])
def test_gradients_agree_between_implementations(impl):
    if impl == "native":
        pytest.importorskip("divse_native")
    images, texts = golden_outputs()
    set_loss(images, texts, POSITIVES, CONFIG, impl=impl).total.backward()
    torch.testing.assert_close(images.sets.grad, GOLDEN["loss_grad_images"], atol=1e-5, rtol=0)


def test_triplet_by_hand():
    scores = torch.tensor([[0.9, 0.2, 0.8], [0.5, 0.6, 0.1]])
    positives = torch.tensor([[True, False, False], [False, True, True]])
    # image 0: 0.2 + 0.8 - 0.9; image 1: 0.2 + 0.5 - 0.6 and 0.2 + 0.5 - 0.1
    to_text = (0.1 + 0.1 + 0.6) / 3
    # captions 0, 1, 2 against the other picture
    to_image = (0.0 + 0.0 + (0.2 + 0.8 - 0.1)) / 3
    loss = triplet(scores, positives, CONFIG)
    assert loss.item() == pytest.approx(to_text + to_image, abs=1e-6)


def test_info_nce_ignores_the_other_captions_of_a_picture():
    scores = torch.tensor([[0.9, 0.9, 0.1], [0.1, 0.1, 0.9]])
    positives = torch.tensor([[True, True, False], [False, False, True]])
    sharp = info_nce(scores, positives, LossConfig(temperature=0.01))
    assert sharp.item() < 1e-6


@pytest.mark.parametrize("name", LOSSES)
def test_perfect_scores_cost_less_than_wrong_ones(name):
    right = POSITIVES.float()
    assert LOSSES[name](right, POSITIVES, CONFIG) < LOSSES[name](1 - right, POSITIVES, CONFIG)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_differentiable(name):
    torch.manual_seed(0)
    scores = torch.randn(6, 30, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, POSITIVES, CONFIG), scores)


def test_mmd_vanishes_for_one_distribution():
    x = torch.nn.functional.normalize(torch.randn(40, 4, 8), dim=-1)
    assert mmd(x, x.flip(0)).item() == pytest.approx(0, abs=1e-6)
    assert mmd(x, -x.abs()) > 0.01


def test_diversity_of_equal_spread_and_single_slots():
    same = torch.ones(2, 4, 8)
    assert diversity(same).item() == pytest.approx(1)
    spread = torch.eye(8)[None, :4] * 3
    assert diversity(spread).item() == pytest.approx(np.exp(-4), rel=1e-5)
    assert diversity(torch.ones(2, 1, 8)).item() == 0


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_every_similarity_trains(similarity):
    images, texts = golden_outputs()
    config = LossConfig(similarity=similarity)
    set_loss(images, texts, POSITIVES, config, impl="auto").total.backward()
    assert images.sets.grad.abs().sum() > 0
