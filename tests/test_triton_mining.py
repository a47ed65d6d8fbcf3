"""Mined negatives against a full sort of float64 scores."""

import pytest
import torch

from divse.similarity.table import get_similarity

kernels = pytest.importorskip("divse_kernels")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def unit(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sets = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(sets, dim=-1).to(DEVICE, dtype)


def groups(count, sets, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(count, (sets,), generator=generator).to(DEVICE)


def negatives(queries, gallery, own, theirs, lengths=(None, None), name="smooth_chamfer", **given):
    """Float64 scores (B, N), -inf for pairs of one group."""
    rows, columns = (
        None if n is None else torch.arange(sets.shape[1], device=DEVICE) < n[:, None]
        for n, sets in zip(lengths, (queries, gallery), strict=True)
    )
    cosines = torch.einsum("bkd,nld->bnkl", queries.double(), gallery.double()).nan_to_num()
    scores = get_similarity(name).reduce(
        cosines,
        None if rows is None else rows[:, None],
        None if columns is None else columns[None],
        **given,
    )
    return scores.masked_fill(own[:, None] == theirs, -torch.inf)


def check(queries, gallery, own, theirs, topn=1, lengths=(None, None), name=None, **given):
    """Scores at the mined positions are the best ones, in order, as far as float32 can tell."""
    named = {"similarity": name} if name else {}
    ids = kernels.hardest_negatives(
        queries,
        gallery,
        own,
        theirs,
        topn,
        **given,
        **{"query_lengths": lengths[0], "gallery_lengths": lengths[1], **named},
    )
    exact = negatives(queries, gallery, own, theirs, lengths, name or "smooth_chamfer", **given)
    for found, scores in zip(ids, (exact, exact.mT), strict=True):
        assert found.shape == (len(scores), topn) and found.dtype == torch.int64
        padded = torch.nn.functional.pad(scores, (0, topn), value=-torch.inf)
        best = padded.topk(topn, dim=1).values
        assert torch.equal(found < 0, best == -torch.inf)
        at = scores.gather(1, found.clamp_min(0)).masked_fill(found < 0, -torch.inf)
        torch.testing.assert_close(at, best, atol=2e-6, rtol=0)
        for row in found:
            real = row[row >= 0]
            assert len(real.unique()) == len(real)
    return ids


@pytest.mark.parametrize("topn", [1, 3])
@pytest.mark.parametrize(
    ("b", "n", "k", "size"), [(1, 1, 4, 4), (33, 70, 4, 4), (70, 33, 3, 6), (40, 20, 1, 8)]
)
def test_rows_and_columns(b, n, k, size, topn):
    check(unit(b, k, 40), unit(n, size, 40, seed=1), groups(9, b, 0), groups(9, n, 1), topn)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    q, g = unit(33, 4, 72, dtype=dtype), unit(40, 4, 72, dtype=dtype, seed=1)
    check(q, g, groups(5, 33, 0), groups(5, 40, 1), 2)


@pytest.mark.parametrize("topn", [1, 2, 8, 32])
def test_every_count_even_past_the_number_of_negatives(topn):
    check(unit(12, 2, 32), unit(20, 2, 32, seed=1), groups(2, 12, 0), groups(2, 20, 1), topn)


def test_one_group_has_no_negatives():
    same = torch.zeros(5, dtype=torch.int64, device=DEVICE)
    ids = kernels.hardest_negatives(unit(5, 4, 32), unit(5, 4, 32), same, same, 2)
    assert all(side.eq(-1).all() for side in ids)


@pytest.mark.parametrize("alpha", [0.5, 30.0, 60.0, 300.0])
@pytest.mark.parametrize("log_mean", [False, True])
def test_every_path_of_alpha(alpha, log_mean):
    own, theirs = groups(4, 9, 0), groups(4, 11, 1)
    check(unit(9, 4, 32), unit(11, 4, 32, seed=1), own, theirs, 2, alpha=alpha, log_mean=log_mean)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, interpreting inf * 0
def test_padding_never_matters():
    q, g, own, theirs = unit(5, 7, 40), unit(6, 4, 40, seed=1), groups(3, 5, 0), groups(3, 6, 1)
    lengths = torch.tensor([1, 7, 3, 2, 6]), torch.tensor([4, 1, 2, 3, 1, 4])
    lengths = tuple(x.to(DEVICE) for x in lengths)
    before = check(q, g, own, theirs, 2, lengths)
    q[torch.arange(7, device=DEVICE) >= lengths[0][:, None]] = torch.nan
    g[torch.arange(4, device=DEVICE) >= lengths[1][:, None]] = torch.inf
    after = kernels.hardest_negatives(q, g, own, theirs, 2, 16.0, False, *lengths)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", ["chamfer", "mil", "maxsim"])
def test_other_similarities(name):
    q, g, own, theirs = unit(12, 3, 40), unit(40, 4, 40, seed=1), groups(4, 12, 0), groups(4, 40, 1)
    check(q, g, own, theirs, 2, name=name)
    check(g, q, theirs, own, 2, name=name)


def test_equal_scores_go_by_position():
    """In every tile, and across tiles: all sets are one and the same.

    Along axes, so that cosines are exact: numpy, which interprets the products, may sum
    those of the last rows of a tile in another order.
    """
    q = torch.eye(32, device=DEVICE)[:4].expand(70, 4, 32)
    g = torch.eye(32, device=DEVICE)[2:6].expand(150, 4, 32)
    own, theirs = (torch.arange(n, device=DEVICE) for n in (70, 150))
    rows, columns = kernels.hardest_negatives(q, g, own, theirs, 3)
    assert rows[0].tolist() == [1, 2, 3] and rows[1].tolist() == [0, 2, 3]
    assert rows[3:].eq(torch.arange(3, device=DEVICE)).all()
    assert columns[2].tolist() == [0, 1, 3] and columns[100].tolist() == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_set_that_is_not_a_number_is_nobodys_negative():
    q, g = unit(4, 2, 32), unit(5, 2, 32, seed=1)
    g[2] = torch.nan
    own, theirs = torch.arange(4, device=DEVICE), torch.arange(5, device=DEVICE) + 10
    rows, columns = kernels.hardest_negatives(q, g, own, theirs, 5)
    assert not rows.eq(2).any() and rows[:, 4].eq(-1).all() and columns[2].eq(-1).all()


def test_repeats_bit_for_bit_and_counts_its_launch():
    q, g, own, theirs = unit(70, 2, 32), unit(90, 2, 32, seed=1), groups(9, 70, 0), groups(9, 90, 1)
    before = kernels.launches["mine_hardest_negatives"]
    runs = [kernels.hardest_negatives(q, g, own, theirs, 4) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert kernels.launches["mine_hardest_negatives"] == before + 2


def test_no_sets():
    own, none = groups(2, 3, 0), groups(2, 0, 0)
    rows, columns = kernels.hardest_negatives(unit(3, 4, 32), unit(0, 4, 32), own, none, 2)
    assert rows.eq(-1).all() and rows.shape == (3, 2) and columns.shape == (0, 2)


@pytest.mark.parametrize("topn", [0, 33])
def test_counts_out_of_range_are_refused(topn):
    ids = groups(2, 2, 0)
    with pytest.raises(ValueError, match="topn must be from 1 to 32"):
        kernels.hardest_negatives(unit(2, 4, 32), unit(2, 4, 32), ids, ids, topn)


def test_groups_must_belong_to_the_sets():
    q, ids = unit(2, 4, 32), groups(2, 2, 0)
    with pytest.raises(ValueError, match="gallery_groups must be"):
        kernels.hardest_negatives(q, q, ids, ids[:1])
    with pytest.raises(TypeError, match="query_groups must be integers"):
        kernels.hardest_negatives(q, q, ids.float(), ids)


def test_torch_checks_the_operator():
    q, ids = unit(3, 4, 32), groups(2, 3, 0)
    arguments = (q, q, ids, ids, 2, 16.0, None, False, "smooth_chamfer", None, None)
    torch.library.opcheck(torch.ops.divse.hardest_negatives.default, arguments)
