"""Triton scores of gathered candidates against float64: sizes, types, padding, refusals."""

import pytest
import torch
from tolerance import assert_close_to_float64

import divse
from divse.similarity import dispatch

kernels = pytest.importorskip("divse_kernels")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = [torch.float16, torch.bfloat16]


def unit(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sets = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(sets, dim=-1).to(DEVICE, dtype)


def positions(b, m, n, seed=2):
    """(b, m) with repetitions, and with none in some places."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, n, (b, m), generator=generator).to(DEVICE)


def lengths(count, size, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, size + 1, (count,), generator=generator).to(DEVICE)


def specified(queries, gallery, candidates, dtype, sizes=(None, None), **options):
    return divse.score_candidates(
        queries.to(dtype),
        gallery.to(dtype),
        candidates,
        unit_norm=False,
        query_lengths=sizes[0],
        gallery_lengths=sizes[1],
        impl="reference",
        **options,
    )


def check(queries, gallery, candidates, sizes=(None, None), **options):
    similarity = options.pop("similarity", "smooth_chamfer")
    scores = kernels.score_candidates(
        queries,
        gallery,
        candidates,
        similarity,
        query_lengths=sizes[0],
        gallery_lengths=sizes[1],
        **options,
    )
    none = candidates < 0
    assert scores.dtype == torch.float32
    assert (scores[none] == -torch.inf).all()
    plain, exact = (
        specified(
            queries, gallery, candidates, dtype, sizes, similarity=similarity, **options
        ).masked_fill(none, 0.0)
        for dtype in (torch.float32, torch.float64)
    )
    scale = exact.abs().max().item()
    assert_close_to_float64(scores.masked_fill(none, 0.0), plain, exact, scale=scale)
    return scores


@pytest.mark.parametrize(
    ("k", "size", "dims"),
    [(1, 1, 32), (4, 4, 72), (3, 5, 40), (17, 4, 64), (4, 32, 64), (32, 9, 64)],
)
def test_every_size(k, size, dims):
    queries, gallery = unit(3, k, dims), unit(20, size, dims, seed=1)
    check(queries, gallery, positions(3, 37, 20))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_types(dtype):
    queries, gallery = unit(2, 4, 136, dtype=dtype), unit(9, 4, 136, dtype=dtype, seed=1)
    check(queries, gallery, positions(2, 5, 9))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("dims", [40, 1024])
def test_float32_queries_keep_their_digits(dtype, dims):
    queries, gallery = unit(2, 4, dims), unit(9, 4, dims, dtype=dtype, seed=1)
    gallery[:, 0] = queries[:1, 0].to(dtype)
    check(queries, gallery, positions(2, 5, 9))


@pytest.mark.parametrize("alpha", [0.1, 19.0, 41.0, 81.0])
def test_alpha(alpha):
    queries, gallery = unit(2, 5, 40), unit(9, 4, 40, seed=1)
    scores = check(queries, gallery, positions(2, 8, 9), alpha=alpha)
    tensor = torch.tensor(alpha, device=DEVICE)
    again = kernels.score_candidates(queries, gallery, positions(2, 8, 9), alpha=tensor)
    torch.testing.assert_close(again, scores)


@pytest.mark.parametrize("similarity", ["chamfer", "mil", "maxsim"])
def test_other_similarities(similarity):
    queries, gallery = unit(2, 5, 40), unit(9, 3, 40, seed=1)
    sizes = lengths(2, 5, 3), lengths(9, 3, 4)
    check(queries, gallery, positions(2, 8, 9), sizes, similarity=similarity)
    if similarity == "maxsim":
        check(queries, gallery, positions(2, 8, 9), similarity=similarity, reduction="mean")


@pytest.mark.parametrize("log_mean", [False, True])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, interpreting inf * 0
def test_padding_never_matters(log_mean):
    queries, gallery = unit(3, 7, 40), unit(11, 4, 40, seed=1)
    sizes, chosen = (lengths(3, 7, 3), lengths(11, 4, 4)), positions(3, 20, 11)
    before = check(queries, gallery, chosen, sizes, log_mean=log_mean)
    queries[torch.arange(7, device=DEVICE) >= sizes[0][:, None]] = torch.nan
    gallery[torch.arange(4, device=DEVICE) >= sizes[1][:, None]] = torch.inf
    again = kernels.score_candidates(
        queries,
        gallery,
        chosen,
        log_mean=log_mean,
        query_lengths=sizes[0],
        gallery_lengths=sizes[1],
    )
    torch.testing.assert_close(again, before, rtol=0, atol=0)


def test_a_candidate_scores_as_among_all_pairs():
    queries, gallery = unit(3, 4, 64), unit(40, 4, 64, seed=1)
    everything = torch.arange(40, device=DEVICE).expand(3, 40)
    scores = kernels.score_candidates(queries, gallery, everything)
    torch.testing.assert_close(scores, kernels.scores(queries, gallery), rtol=0, atol=2e-7)
    shuffled = kernels.score_candidates(queries, gallery, everything.flip(1)[:, ::3])
    torch.testing.assert_close(shuffled, scores.flip(1)[:, ::3], rtol=0, atol=2e-7)


def test_nothing_to_score():
    queries, gallery = unit(2, 4, 32), unit(5, 4, 32)
    none = torch.full((2, 3), -1, device=DEVICE)
    assert (kernels.score_candidates(queries, gallery, none) == -torch.inf).all()
    assert (kernels.score_candidates(queries, gallery[:0], none) == -torch.inf).all()
    assert kernels.score_candidates(queries, gallery, none[:, :0]).shape == (2, 0)


def test_the_public_function_runs_through_the_kernel():
    queries, gallery = unit(2, 4, 32), unit(5, 4, 32, dtype=torch.float16, seed=1)
    chosen = positions(2, 6, 5)
    launched, served = kernels.launches["score_gathered"], dispatch.calls["triton.candidates"]
    scores = divse.score_candidates(queries, gallery, chosen, unit_norm=False, impl="triton")
    assert kernels.launches["score_gathered"] == launched + 1
    assert dispatch.calls["triton.candidates"] == served + 1
    torch.testing.assert_close(scores, specified(queries, gallery, chosen, torch.float32))


@pytest.mark.parametrize("sizes", [(None, None), (lengths(3, 4, 7), lengths(6, 2, 8))])
@pytest.mark.parametrize("of_sets", [False, True])
def test_a_learned_alpha_and_sets_get_the_gradient_of_the_reference(sizes, of_sets):
    """Alpha alone too, beside sets of another type; places without a candidate have none."""
    found = []
    chosen = positions(3, 5, 6)
    weights = torch.linspace(-1, 2, 15, device=DEVICE).view(3, 5)
    for impl in ("triton", "reference"):
        queries = unit(3, 4, 32).requires_grad_(of_sets)
        gallery = unit(6, 2, 32, dtype=torch.float32 if of_sets else torch.float16, seed=1)
        alpha = torch.tensor(12.0, device=DEVICE, requires_grad=True)
        leaves = [alpha, queries, gallery.requires_grad_(of_sets)][: 3 if of_sets else 1]
        scores = divse.score_candidates(
            queries,
            gallery if impl == "triton" else gallery.float(),
            chosen,
            alpha=alpha,
            unit_norm=False,
            query_lengths=sizes[0],
            gallery_lengths=sizes[1],
            impl=impl,
        )
        assert (scores == -torch.inf).equal(chosen < 0)
        total = (scores.masked_fill(chosen < 0, 0.0) * weights).sum()
        found.append([scores.detach(), *torch.autograd.grad(total, leaves)])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5)


def test_refusals():
    queries, gallery, chosen = unit(2, 4, 32), unit(5, 4, 32), positions(2, 6, 5)
    with pytest.raises(TypeError, match="int64"):
        kernels.score_candidates(queries, gallery, chosen.int())
    with pytest.raises(ValueError, match="one row for each query"):
        kernels.score_candidates(queries, gallery, chosen[:1])
    with pytest.raises(ValueError, match="float16"):
        kernels.score_candidates(queries.half(), gallery, chosen)
    with pytest.raises(ValueError, match="alpha"):
        kernels.score_candidates(queries, gallery, chosen, alpha=0.0)


@pytest.mark.gpu
@pytest.mark.parametrize("query_dtype", [torch.float32, None])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize(
    ("b", "m", "k", "size", "dims"),
    [(64, 1000, 4, 4, 1024), (1, 50, 4, 4, 512), (30, 300, 32, 32, 128), (9, 400, 20, 5, 520)],
)
def test_tuned_tiles(b, m, k, size, dims, dtype, query_dtype):
    queries = unit(b, k, dims, dtype=query_dtype or dtype)
    check(queries, unit(20_000, size, dims, dtype=dtype, seed=1), positions(b, m, 20_000))


@pytest.mark.gpu
def test_candidates_past_2_31_elements():
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("needs 16 GiB of free GPU memory")
    few = unit(2, 4, 1024, dtype=torch.float16)
    gallery = few.repeat(300_000, 1, 1)  # 2.4e9 elements
    last = torch.tensor([[599_998, 599_999]] * 2, device=DEVICE)
    scores = kernels.score_candidates(few, gallery, last)
    assert torch.equal(scores, kernels.score_candidates(few, few, last - 599_998))
