"""Gradients of scores of sets of more than 32 elements against float64 autograd."""

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

kernels = pytest.importorskip("divse_kernels")
products = pytest.importorskip("divse_kernels.products")

every_similarity = pytest.mark.parametrize("name", SIMILARITIES)


def ours(name, lengths=(None, None)):
    """Scores by the kernels, as a function of both sides and, maybe, alpha."""
    similarity, parameters = called(name)

    def scores(queries, gallery, *alpha):
        given = parameters | ({"alpha": alpha[0]} if alpha else {})
        ql, gl = lengths
        sides = queries, gallery
        return kernels.scores(*sides, similarity, query_lengths=ql, gallery_lengths=gl, **given)

    return scores


def spec(name, lengths=(None, None)):
    def scores(queries, gallery, *alpha):
        more = {"alpha": alpha[0]} if alpha else {}
        return specified(queries, gallery, queries.dtype, name, lengths, **more)

    return scores


def check(queries, gallery, name, lengths=(None, None), alpha=None):
    before = kernels.launches["long_weights"]
    inputs = [queries, gallery] + ([] if alpha is None else [alpha])
    weights = weights_of(len(queries), len(gallery))
    assert_gradients(ours(name, lengths), spec(name, lengths), inputs, weights)
    assert kernels.launches["long_weights"] > before


@every_similarity
@pytest.mark.parametrize(
    ("k", "size"), [(33, 63), (65, 97), (128, 130), (130, 65), (97, 4), (130, 150)]
)
def test_sizes(k, size, name):
    check(unit(1, k, 32), unit(2, size, 32, seed=1), name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dims", [40, 136])
@pytest.mark.parametrize("name", ["maxsim", "smooth_chamfer"])
def test_several_sets_in_a_tile_and_several_tiles(dims, dtype, name):
    check(unit(9, 32, dims, dtype=dtype), unit(3, 70, dims, dtype=dtype, seed=1), name)


@pytest.mark.parametrize("name", ["chamfer", "mil", "smooth_chamfer"])
def test_parts_in_half_precision(name):
    check(
        unit(2, 130, 32, dtype=torch.float16), unit(2, 150, 32, dtype=torch.float16, seed=1), name
    )


@every_similarity
@pytest.mark.parametrize(("k", "size"), [(40, 97), (130, 150)])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, interpreting
def test_padding_never_matters(k, size, name):
    queries, gallery = unit(2, k, 32), unit(2, size, 32, seed=1)
    lengths = lengths_of(2, k), lengths_of(2, size, seed=1)
    check(queries, gallery, name, lengths)
    weights = weights_of(2, 2)
    before = gradients(ours(name, lengths), (queries, gallery), weights)
    queries[~mask(lengths[0], k)] = torch.nan
    gallery[~mask(lengths[1], size)] = torch.inf
    after = gradients(ours(name, lengths), (queries, gallery), weights)
    assert after[0][0, 1:].eq(0).all() and after[1][0, 1:].eq(0).all()
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("alpha", [0.1, 40.0, 41.0, 81.0, 1000.0])
@pytest.mark.parametrize("kind", ["random", "flat", "opposite"])
def test_alpha_walk(alpha, kind, monkeypatch):
    queries, gallery = unit(1, 130, 32), unit(1, 40, 32, seed=1)
    if kind != "random":
        queries = unit(1, 1, 32).repeat(1, 130, 1)
        gallery = (queries if kind == "flat" else -queries)[:, :40]
    monkeypatch.setitem(SIMILARITIES, "shifted", {"alpha": alpha})
    check(queries, gallery, "shifted")


@pytest.mark.parametrize(
    ("k", "size", "alpha", "log_mean", "dtype"),
    [
        (33, 70, 0.5, False, torch.float32),
        (33, 70, 16.0, True, torch.float16),
        (130, 150, 16.0, False, torch.float32),
        (33, 40, 300.0, False, torch.float32),
    ],
)
def test_gradient_for_alpha(k, size, alpha, log_mean, dtype):
    queries, gallery = unit(2, k, 32, dtype=dtype), unit(2, size, 32, dtype=dtype, seed=1)
    lengths = lengths_of(2, k), None
    name = "log_mean" if log_mean else "smooth_chamfer"
    check(queries, gallery, name, lengths, torch.tensor(alpha, device=DEVICE))


@pytest.mark.parametrize("name", ["chamfer", "mil", "maxsim", "maxsim_mean"])
@pytest.mark.parametrize(("k", "size"), [(33, 70), (130, 150)])
def test_equal_maxima_share_as_those_of_torch_do(k, size, name):
    """Cosines are multiples of 1/16, exact in every type: most of the best ones are shared."""
    generator = torch.Generator().manual_seed(0)
    sides = []
    for count, n in ((1, k), (2, size)):
        signs = torch.randint(0, 2, (count, n, 16), generator=generator) * 0.5 - 0.25
        sides.append(torch.nn.functional.pad(signs, (0, 16)).to(DEVICE))
    check(*sides, name)


@pytest.mark.parametrize("name", ["maxsim", "smooth_chamfer", "mil"])
@pytest.mark.parametrize(("dtype", "ragged"), [(torch.float32, False), (torch.float16, True)])
def test_chunks_of_weights_add_up_and_repeat(monkeypatch, dtype, ragged, name):
    """A workspace of 8 KiB: one row set and a few column sets at a time."""
    monkeypatch.setattr(products, "WORKSPACE", 1 << 13)
    queries, gallery = unit(2, 35, 32, dtype=dtype), unit(3, 66, 32, dtype=dtype, seed=1)
    lengths = (lengths_of(2, 35), lengths_of(3, 66, seed=1)) if ragged else (None, None)
    before = kernels.launches["long_weights"]
    check(queries, gallery, name, lengths)
    assert kernels.launches["long_weights"] - before >= 4
    weights = weights_of(2, 3)
    runs = [gradients(ours(name, lengths), (queries, gallery), weights) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_only_what_is_asked_for_is_computed():
    queries, gallery = unit(2, 40, 32), unit(3, 4, 32, seed=1).requires_grad_()
    kernels.scores(queries, gallery, "maxsim").sum().backward()
    assert queries.grad is None and gallery.grad is not None
    queries.requires_grad_()
    kernels.scores(queries, unit(0, 4, 32), "maxsim").sum().backward()
    assert queries.grad.eq(0).all()


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # opcheck's own
def test_torch_checks_the_operators(learned):
    queries, gallery = unit(1, 40, 32).requires_grad_(), unit(1, 33, 32, seed=1).requires_grad_()
    alpha = torch.tensor(16.0, device=DEVICE, requires_grad=True) if learned else None
    arguments = queries, gallery, "smooth_chamfer", 16.0, alpha, False
    rest = lengths_of(1, 40), None
    torch.library.opcheck(torch.ops.divse.long_scores.default, (*arguments, *rest, None, 0))
    sets = [x if x is None else x.detach() for x in (queries, gallery, alpha)]
    torch.library.opcheck(
        torch.ops.divse.scores_backward.default,
        (weights_of(1, 1), *sets[:2], "smooth_chamfer", 16.0, sets[2], *rest, True, True, learned),
    )


def test_compiles_as_one_graph():
    def loss(queries, gallery, alpha):
        scores = kernels.scores(
            torch.nn.functional.normalize(queries, dim=-1), gallery, alpha=alpha
        )
        return (scores.diagonal() - scores.amax(1)).square().sum()

    leaves = unit(3, 33, 32).requires_grad_(), unit(3, 40, 32, seed=1).requires_grad_()
    leaves = *leaves, torch.tensor(16.0, device=DEVICE, requires_grad=True)
    expected = torch.autograd.grad(loss(*leaves), leaves)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*leaves), leaves), expected, strict=True):
        torch.testing.assert_close(a, b)
