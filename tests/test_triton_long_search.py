"""Pairs, candidates and search of sets of more than 32 elements."""

import pytest
import torch
from long_cases import (
    DEVICE,
    SIMILARITIES,
    assert_gradients,
    called,
    gradients,
    lengths_of,
    mask,
    specified,
    unit,
    weights_of,
)
from search_cases import bitmap, check, searched, sorted_fully
from tolerance import assert_close_to_float64

import divse
from divse.similarity.dispatch import calls
from divse.training.losses import batch_scores

kernels = pytest.importorskip("divse_kernels")
products = pytest.importorskip("divse_kernels.products")
from divse_kernels import long_scan  # noqa: E402
from divse_kernels.long_pairs import add  # noqa: E402

every_similarity = pytest.mark.parametrize("name", SIMILARITIES)


def ids(*values):
    return torch.tensor(values, device=DEVICE)


@every_similarity
@pytest.mark.parametrize(("k", "size"), [(5, 97), (33, 65), (100, 4), (130, 150)])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, interpreting
def test_candidates(k, size, name):
    queries, gallery = unit(2, k, 32), unit(4, size, 32, seed=1)
    lengths = lengths_of(2, k), lengths_of(4, size, seed=1)
    chosen = ids([3, -1, 0], [2, 2, 1])
    similarity, parameters = called(name)
    plain, exact = (
        specified(queries, gallery, dtype, name, lengths).gather(1, chosen.clamp_min(0))
        for dtype in (torch.float32, torch.float64)
    )
    queries[~mask(lengths[0], k)] = torch.nan
    gallery[~mask(lengths[1], size)] = torch.inf
    scores = kernels.score_candidates(
        queries, gallery, chosen, similarity, query_lengths=lengths[0],
        gallery_lengths=lengths[1], **parameters,
    )  # fmt: skip
    assert scores[0, 1] == -torch.inf
    found, plain, exact = (x.masked_fill(chosen < 0, 0.0) for x in (scores, plain, exact))
    assert_close_to_float64(found, plain, exact, exact.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_candidates_of_float32_queries(dtype):
    queries, gallery = unit(2, 20, 40), unit(4, 70, 40, dtype=dtype, seed=1)
    chosen = ids([3, 1, 0], [2, 2, 1])
    for rounded in (queries, queries.to(dtype)):
        plain, exact = (
            specified(rounded, gallery, kind, "chamfer").gather(1, chosen)
            for kind in (torch.float32, torch.float64)
        )
        scores = kernels.score_candidates(rounded, gallery, chosen, "chamfer")
        assert_close_to_float64(scores, plain, exact)


@every_similarity
@pytest.mark.parametrize(("k", "size"), [(33, 65), (130, 150)])
def test_pairs_and_their_gradients(monkeypatch, k, size, name):
    """Two pairs at a time; sets that several pairs share, and one that none has."""
    monkeypatch.setattr(products, "WORKSPACE", 2 * 4 * (k * size + 2 * (k + size) * 32))
    first, second = ids(0, 2, 2, 2, 0), ids(1, 1, 0, 1, 3)
    lengths = lengths_of(3, k), lengths_of(4, size, seed=1)
    similarity, parameters = called(name)

    def ours(q, g, *alpha):
        given = parameters | ({"alpha": alpha[0]} if alpha else {})
        return kernels.score_pairs(
            q, g, first, second, similarity, query_lengths=lengths[0],
            gallery_lengths=lengths[1], **given,
        )  # fmt: skip

    def spec(q, g, *alpha):
        more = {"alpha": alpha[0]} if alpha else {}
        return specified(q, g, q.dtype, name, lengths, **more)[first, second]

    inputs = unit(3, k, 32), unit(4, size, 32, seed=1)
    plain, exact = (
        spec(*(x.to(dtype) for x in inputs)) for dtype in (torch.float32, torch.float64)
    )
    assert_close_to_float64(ours(*inputs), plain, exact, exact.abs().max().item())
    if name == "log_mean":
        inputs = *inputs, torch.tensor(16.0, device=DEVICE)
    assert_gradients(ours, spec, inputs, weights_of(5))
    runs = [gradients(ours, inputs, weights_of(5)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_pairs_of_no_set_and_no_pairs():
    queries, gallery = unit(2, 40, 32).requires_grad_(), unit(3, 4, 32, seed=1)
    scores = kernels.score_pairs(queries, gallery, ids(0, -1, 1), ids(2, 0, 7), "maxsim")
    assert scores.isinf().tolist() == [False, True, True]
    (grad,) = torch.autograd.grad(scores[0], queries)
    assert grad[0].ne(0).any() and grad[1].eq(0).all()
    none = kernels.score_pairs(queries, gallery, ids()[:0].long(), ids()[:0].long())
    assert none.shape == (0,)
    assert torch.autograd.grad(none.sum(), queries)[0].eq(0).all()


def test_candidates_have_the_gradient_of_pairs():
    queries, gallery = unit(2, 40, 32), unit(4, 35, 32, seed=1)
    chosen, weights = ids([3, 1], [0, 3]), weights_of(2, 2)
    sides = queries, gallery
    got = gradients(lambda q, g: kernels.score_candidates(q, g, chosen), sides, weights)
    expected = gradients(lambda q, g: kernels.scores(q, g).gather(1, chosen), sides, weights)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # opcheck's own
def test_torch_checks_the_operators_of_pairs():
    queries, gallery = unit(2, 40, 32).requires_grad_(), unit(2, 33, 32, seed=1).requires_grad_()
    alpha = torch.tensor(16.0, device=DEVICE, requires_grad=True)
    how = ids(0), ids(1), "smooth_chamfer", 16.0, alpha
    rest = lengths_of(2, 40), None
    operators = torch.ops.divse
    torch.library.opcheck(operators.long_pairs.default, (queries, gallery, *how, True, *rest))
    sets = [x.detach() for x in (queries, gallery, alpha)]
    arguments = weights_of(1), *sets[:2], *how[:4], sets[2], *rest, True, False, True
    torch.library.opcheck(operators.long_pairs_backward.default, arguments)


@pytest.mark.parametrize("shape", [(2, 3), (40, 32)])
def test_sets_add_up_what_their_pairs_have(shape):
    """Blocks that are not full, a set with many pairs, sets with none; on top of what is there."""
    parts = weights_of(70, *shape)
    sets = torch.where(torch.arange(70) < 40, 3, torch.arange(70) % 5).to(DEVICE)
    sums = weights_of(7, *shape)
    expected = sums.double().index_add(0, sets, parts.double())
    add(parts, sets, sums)
    torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(sums[5:], weights_of(7, *shape)[5:])


@pytest.mark.parametrize("name", ["maxsim", "smooth_chamfer"])
@pytest.mark.parametrize(("k", "size", "topk"), [(33, 40, 5), (4, 65, 30)])
def test_search_is_a_full_sort(monkeypatch, k, size, topk, name):
    """Scores of a few sets at a time."""
    monkeypatch.setattr(long_scan, "SCORES", 3 * 7)
    queries, gallery = unit(3, k, 32), unit(23, size, 32, seed=1)
    excluded = torch.arange(23, device=DEVICE) % 4 == 1
    options = {"query_lengths": lengths_of(3, k), "gallery_lengths": lengths_of(23, size, seed=1)}
    check(queries, gallery, topk, excluded, similarity=name, **options)


def test_equal_sets_are_found_in_order():
    gallery = unit(3, 40, 32, seed=1).repeat(8, 1, 1)
    check(unit(2, 34, 32), gallery, 9)


def test_rows_that_are_too_short_are_scanned_again():
    """Scores that ascend overflow a row of 16 keys: the driver recovers."""
    queries = unit(1, 33, 32)
    noise = unit(100, 40, 32, seed=1) * torch.linspace(1, 0, 100, device=DEVICE)[:, None, None]
    gallery = torch.nn.functional.normalize(noise + queries[:, :1], dim=-1)
    found = searched(queries, gallery, 4, 16)
    scores, positions = sorted_fully(kernels.scores(queries, gallery), 4)
    assert torch.equal(found[1], positions)
    torch.testing.assert_close(found[0], scores, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_search_in_blocks_of_ragged_sets(dtype):
    """From the host, of any sizes, with float32 queries."""
    queries, gallery = unit(2, 33, 32), unit(20, 40, 32, dtype=dtype, seed=1)
    lengths, excluded = lengths_of(20, 40, seed=1), torch.arange(20, device=DEVICE) % 3 == 0
    options = {"excluded": bitmap(excluded), "similarity": "maxsim"}
    whole = kernels.search(queries, gallery, 6, gallery_lengths=lengths, **options)
    starts = [0, 3, 11, 20]
    blocks = (
        (a, gallery[a:b].cpu(), lengths[a:b].cpu())
        for a, b in zip(starts[:-1], starts[1:], strict=True)
    )
    found = kernels.search_blocks(queries, blocks, 6, **options)
    assert torch.equal(found.ids, whole.ids) and torch.equal(found.scores, whole.scores)
    exact = specified(queries, gallery, torch.float64, "maxsim", (None, lengths))
    plain = specified(queries, gallery, torch.float32, "maxsim", (None, lengths))
    near, true = (x.gather(1, whole.ids) for x in (plain, exact))
    assert_close_to_float64(whole.scores, near, true, true.abs().max().item())


def test_through_the_public_functions():
    """By name; nothing falls back."""
    queries, gallery = unit(3, 33, 32).requires_grad_(), unit(4, 40, 32, seed=1)
    options = {"unit_norm": False, "impl": "triton"}
    plain = options | {"impl": "reference"}
    before = calls.total()
    got, expected = (
        torch.autograd.grad(divse.score(queries, gallery, "maxsim", **o).sum(), queries)[0]
        for o in (options, plain)
    )
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    got, expected = (
        divse.score_pairs(queries, gallery[:3], **o).detach() for o in (options, plain)
    )
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    queries = queries.detach()
    chosen = ids([3, -1], [0, 1], [2, 2])
    got, expected = (
        divse.score_candidates(queries, gallery, chosen, **o) for o in (options, plain)
    )
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    got, expected = (divse.search(queries, gallery, 3, **o) for o in (options, plain))
    assert torch.equal(got.ids, expected.ids)
    groups = torch.arange(3, device=DEVICE), torch.arange(4, device=DEVICE)
    got, expected = (
        divse.hardest_negatives(queries, gallery, groups, topn=2, **o) for o in (options, plain)
    )
    assert torch.equal(got, expected)
    assert calls.total() - before == 10
    for operation in ("scores", "pairs", "candidates", "search", "hardest_negatives"):
        chosen = divse.explain(queries, gallery, operation=operation, impl="triton")
        assert chosen.impl == "triton"


def test_a_training_loss_of_long_sets_runs_through_the_kernels():
    """Scores of all pairs, as their log-sum-exps have no kernel; learned alpha too."""
    alpha = torch.tensor(16.0, device=DEVICE, requires_grad=True)
    leaves = unit(3, 33, 32).requires_grad_(), unit(3, 40, 32, seed=1).requires_grad_(), alpha
    pictures = torch.arange(3, device=DEVICE)
    found = []
    for impl in ("triton", "reference"):
        options = {"similarity": "smooth_chamfer", "alpha": alpha}
        scores = batch_scores(*leaves[:2], pictures, options, impl)
        found.append(torch.autograd.grad(scores.log_odds(0.05).to_text.sum(), leaves))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_what_is_too_long_is_refused():
    queries, gallery = unit(1, 4, 32), torch.zeros(2, 1025, 32, device=DEVICE)
    message = "1 to 1024 elements, gallery hold 1025"
    with pytest.raises(ValueError, match=message):
        kernels.search(queries, gallery, 1)
    with pytest.raises(ValueError, match=message):
        kernels.score_candidates(queries, gallery, ids([0]))
    with pytest.raises(ValueError, match=message):
        kernels.score_pairs(queries, gallery, ids(0), ids(0))
    with pytest.raises(ValueError, match="1 to 32 elements"):
        kernels.hardest_negatives(queries, gallery[:, :33], ids(0), ids(0, 1))
