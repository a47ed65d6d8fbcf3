import torch
from torch.nn import functional as F

from divse.evaluation.supervision import supervision
from divse.training.config import LossConfig
from divse.training.supervision import ranking_supervision


def sets(n: int, k: int = 4, d: int = 8, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return F.normalize(torch.randn(n, k, d), dim=-1)


def test_one_pair_receives_all_of_mil_and_every_element_a_part_of_smooth_chamfer():
    images, texts, owners = sets(1), sets(2, seed=1), torch.tensor([0, 0])
    images, texts = torch.cat([images, -images]), texts  # a second picture: a negative
    shares = {
        name: ranking_supervision(
            images, texts, owners, LossConfig(name="info_nce", similarity=name, temperature=0.05)
        )
        for name in ("mil", "smooth_chamfer")
    }
    assert shares["mil"].texts[0] > shares["smooth_chamfer"].texts[0]
    assert (shares["smooth_chamfer"].texts > 0).all()
    assert (shares["mil"].texts[2:] == 0).all()  # two pictures touch at most two elements


def test_shares_are_sorted_sum_to_one_and_ignore_what_normalising_loses():
    images, texts = sets(3), sets(3, seed=2)
    weights = torch.tensor([1.0, 3.0, 0.0, 4.0])
    direction = sets(3, seed=5)

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        across = direction - (direction * images).sum(-1, keepdim=True) * images
        across = F.normalize(across, dim=-1)
        radial = (x * images).sum((1, 2)).sum()  # parallel to every element: no share of it counts
        return (weights * (x * across).sum(-1)).sum() + 100 * radial + (y.sum(-1) ** 2).sum()

    found = supervision(images, texts, loss)
    torch.testing.assert_close(
        found.images, torch.tensor([4, 3, 1, 0]).double() / 8, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(found.texts.sum(), torch.tensor(1.0).double())


def test_sets_without_gradient_do_not_count():
    images, texts = sets(2), sets(2, seed=3)
    found = supervision(images, texts, lambda x, y: x[0, 0, 0] + 0 * y.sum())
    assert found.images.tolist() == [1, 0, 0, 0]
    assert found.texts.isnan().all()
