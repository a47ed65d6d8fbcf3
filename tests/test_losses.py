from pathlib import Path

import numpy as np
import pytest
import torch

import divse
from divse import SIMILARITIES
from divse.models import SetOutput
from divse.training.batch_scores import DenseScores, positive_mask
from divse.training.config import LossConfig
from divse.training.losses import (
    LOSSES,
    LossParts,
    batch_scores,
    diversity,
    mmd,
    ranking_loss,
    set_loss,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
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
    loss = ranking_loss("triplet", DenseScores(scores, positives), CONFIG)
    assert loss.item() == pytest.approx(to_text + to_image, abs=1e-6)


def test_info_nce_ignores_the_other_captions_of_a_picture():
    scores = torch.tensor([[0.9, 0.9, 0.1], [0.1, 0.1, 0.9]])
    positives = torch.tensor([[True, True, False], [False, False, True]])
    sharp = ranking_loss("info_nce", DenseScores(scores, positives), LossConfig(temperature=0.01))
    assert sharp.item() < 1e-6


@pytest.mark.parametrize("name", LOSSES)
def test_perfect_scores_cost_less_than_wrong_ones(name):
    right = POSITIVES.float()
    perfect, wrong = (
        ranking_loss(name, DenseScores(scores, POSITIVES), CONFIG) for scores in (right, 1 - right)
    )
    assert perfect < wrong


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_differentiable(name):
    torch.manual_seed(0)
    scores = torch.randn(6, 30, dtype=torch.float64, requires_grad=True)
    config = LossConfig(temperature=0.5)
    assert torch.autograd.gradcheck(
        lambda s: ranking_loss(name, DenseScores(s, POSITIVES), config), scores
    )


def test_smooth_losses_tend_to_the_hardest_negative():
    scores = torch.randn(6, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = DenseScores(scores, POSITIVES)
    sharp = LossConfig(temperature=1e-4)
    hard = ranking_loss("triplet", batch, sharp)
    torch.testing.assert_close(ranking_loss("lse_triplet", batch, sharp), hard, atol=1e-3, rtol=0)
    hinge = ranking_loss("triplet", batch, LossConfig(margin=0.0))
    soft = sharp.temperature * ranking_loss("soft_triplet", batch, sharp)
    torch.testing.assert_close(soft, hinge, atol=1e-3, rtol=0)


def side(count, seed, size=4):
    generator = torch.Generator().manual_seed(seed)
    sets = torch.randn(count, size, 40, generator=generator)
    sets = torch.nn.functional.normalize(sets, dim=-1).to(DEVICE).requires_grad_()
    return SetOutput(sets, torch.randn(count, size, 8, generator=generator).to(DEVICE))


def step(positives, config, impl):
    images, texts = side(9, 0), side(24, 1)
    parts = set_loss(images, texts, positives, config, impl=impl)
    parts.total.backward()
    return [*(part.detach() for part in parts), images.sets.grad, texts.sets.grad]


PICTURES = torch.tensor([0, 0, 0, 1, 2, 2, 3, 4, 4, 5, 7, 7] * 2, device=DEVICE)
MINED = ("triplet", "soft_triplet")  # losses of the hardest negatives alone


def assert_equal_steps(got, expected, temperature=0.05):
    """MMD is less exact: `torch.cdist` finds an element at some distance of itself.

    A loss divides scores, and what rounding did to them, by its temperature.
    """
    ordinary = 1e-6 * max(1, 0.05 / temperature)
    for place, (a, b) in enumerate(zip(got, expected, strict=True)):
        slack = 1e-5 if place == LossParts._fields.index("mmd") else ordinary
        torch.testing.assert_close(a, b, atol=slack, rtol=1e-5)


@pytest.mark.parametrize("margin", [0.02, 0.2, 1.0])
@pytest.mark.parametrize("name", MINED)
def test_few_scores_give_the_loss_and_gradients_of_all(name, margin):
    """Pictures of no, one and several captions; hinges that are open and that are shut."""
    kernels = pytest.importorskip("divse_kernels")
    config = LossConfig(name=name, margin=margin)
    before = kernels.launches["mine_hardest_negatives"]
    few = step(PICTURES, config, "triton")
    assert kernels.launches["mine_hardest_negatives"] == before + 1
    everything = step(PICTURES, config, "reference")
    mask = step(positive_mask(PICTURES, 9), config, "triton")  # all scores by the kernels
    assert kernels.launches["mine_hardest_negatives"] == before + 1
    assert_equal_steps(few, everything)
    assert_equal_steps(mask, everything)


@pytest.mark.parametrize("temperature", [0.02, 0.2])
@pytest.mark.parametrize("name", [name for name in LOSSES if name not in MINED])
def test_log_sum_exps_by_tile_give_the_loss_and_gradients_of_all_scores(name, temperature):
    """Neither scores nor distances are held: a launch of each kernel that makes them in tiles."""
    kernels = pytest.importorskip("divse_kernels")
    config = LossConfig(name=name, temperature=temperature)
    kernels.launches.clear()
    tiled = step(PICTURES, config, "triton")
    assert kernels.launches["row_column_lse"] == 1 and kernels.launches["score_weights"] == 1
    assert kernels.launches["rbf_sums"] == kernels.launches["rbf_weights"] == 3
    assert not kernels.launches["smooth_chamfer_forward"]
    assert_equal_steps(tiled, step(PICTURES, config, "reference"), temperature)


@pytest.mark.parametrize("name", ["triplet", "info_nce"])
@pytest.mark.parametrize("similarity", ["chamfer", "maxsim", "mil"])
def test_tiles_serve_other_similarities(name, similarity):
    pytest.importorskip("divse_kernels")
    config = LossConfig(name=name, similarity=similarity, temperature=0.5)
    assert_equal_steps(*(step(PICTURES, config, impl) for impl in ("triton", "reference")))


@pytest.mark.parametrize("name", ["triplet", "lse_triplet"])
def test_a_learned_alpha_gets_the_same_gradient(name):
    pytest.importorskip("divse_kernels")
    found = []
    for impl in ("triton", "reference"):
        alpha = torch.tensor(16.0, device=DEVICE, requires_grad=True)
        learned = {"alpha": alpha}
        images, texts = side(9, 0), side(24, 1)
        config = LossConfig(name=name, margin=1.0)
        parts = set_loss(images, texts, PICTURES, config, impl=impl, learned=learned)
        parts.total.backward()
        found.append([parts.total.detach(), alpha.grad, images.sets.grad, texts.sets.grad])
    assert_equal_steps(*found)


@pytest.mark.parametrize("recall", [False, True])
def test_what_is_not_asked_for_costs_nothing_and_recall_never_does(recall):
    kernels = pytest.importorskip("divse_kernels")
    kernels.launches.clear()
    images, texts = side(9, 0), side(24, 1)
    config = LossConfig(name="info_nce", mmd=0.0)
    parts = set_loss(images, texts, PICTURES, config, impl="triton", recall=recall)
    assert parts.recall.isnan() != recall and parts.mmd == 0
    assert kernels.launches == {"row_column_lse": 1, "score_pairs": 1}


@pytest.mark.parametrize("name", LOSSES)
def test_recall_by_tile_takes_equal_pictures_for_found(name):
    """Twins score equally but for rounding, which two kernels do in two ways."""
    pytest.importorskip("divse_kernels")
    images, texts = side(8, 0).sets.detach(), side(24, 1).sets.detach()
    pictures = divse.score(images, texts, impl="reference").argmax(0)
    pictures[12:] = (pictures[12:] + 1) % 8
    pictures += 8 * (torch.arange(24, device=DEVICE) % 2)
    given = {"similarity": "smooth_chamfer", "alpha": 16.0, "log_mean": False}
    batch = batch_scores(images.repeat(2, 1, 1), texts, pictures, given, "triton")
    ranking_loss(name, batch, LossConfig())
    assert batch.recall() == 0.5


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_a_batch_without_negatives(impl, name):
    pytest.importorskip("divse_kernels")
    pictures = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    images, texts = side(1, 0), side(3, 1)
    config = LossConfig(name=name, mmd=0.0, diversity=0.0)
    parts = set_loss(images, texts, pictures, config, impl=impl)
    parts.total.backward()
    assert parts.ranking == 0 and parts.recall == 1
    assert images.sets.grad.eq(0).all() and texts.sets.grad.eq(0).all()


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


def test_diversity_is_that_of_all_pairs_of_slots():
    slots = torch.randn(5, 4, 8, dtype=torch.float64, requires_grad=True)
    u = torch.nn.functional.normalize(slots.float(), dim=-1)
    pairs = [(u[:, i] - u[:, j]).square().sum(1) for i in range(4) for j in range(i)]
    expected = torch.exp(-2 * torch.stack(pairs)).mean()
    torch.testing.assert_close(diversity(slots), expected)
    gradients = [torch.autograd.grad(x, slots)[0] for x in (diversity(slots), expected)]
    torch.testing.assert_close(*gradients)
    same = torch.ones(2, 4, 8, requires_grad=True)
    diversity(same).backward()
    assert same.grad.abs().max() < 1e-6


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_every_similarity_trains(similarity):
    images, texts = golden_outputs()
    config = LossConfig(similarity=similarity)
    set_loss(images, texts, POSITIVES, config, impl="auto").total.backward()
    assert images.sets.grad.abs().sum() > 0
