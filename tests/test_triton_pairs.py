"""Scores of pairs and their gradients against float64 autograd through all pairs."""

import pytest
import torch
from tolerance import assert_close_to_float64

from divse.similarity.table import get_similarity

kernels = pytest.importorskip("divse_kernels")
from divse_kernels.pair_gradients import CHUNK, segments  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TYPES = [torch.float32, torch.float16, torch.bfloat16]


def unit(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sets = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(sets, dim=-1).to(DEVICE, dtype)


def ids(count, sets, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(sets, (count,), generator=generator).to(DEVICE)


def specified(queries, gallery, first, second, lengths, name, given):
    """The specification on gathered sets, padding read as zeros."""
    masks = []
    for n, sets in zip(lengths, (queries, gallery), strict=True):
        masks.append(None if n is None else torch.arange(sets.shape[1], device=DEVICE) < n[:, None])
    q, g = (
        s if m is None else s.masked_fill(~m[..., None], 0.0)
        for s, m in zip((queries, gallery), masks, strict=True)
    )
    return get_similarity(name).reduce(
        torch.einsum("pkd,pld->pkl", q[first], g[second]),
        None if masks[0] is None else masks[0][first],
        None if masks[1] is None else masks[1][second],
        **given,
    )


def results(score, inputs, weights, dtype):
    """Scores and gradients of their weighted sum, computed in `dtype`, in leaf types."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    scores = score(*(x.to(dtype) if dtype else x for x in leaves))
    (scores * weights.to(scores.dtype)).sum().backward()
    return [scores.detach(), *(x.grad for x in leaves)]


def check(
    queries, gallery, first, second, lengths=(None, None), name="smooth_chamfer", alpha=16.0, **more
):
    """Compare scores and every gradient, alpha's too if it is a tensor."""
    weights = torch.randn(len(first), generator=torch.Generator().manual_seed(7)).to(DEVICE)
    weights[::5] = 0.0  # nothing is read for these
    learned = isinstance(alpha, torch.Tensor)
    smooth = {"alpha": alpha} if name == "smooth_chamfer" else {}

    def ours(q, g, a=None):
        given = more | smooth | ({"alpha": a} if learned else {})
        sizes = {"query_lengths": lengths[0], "gallery_lengths": lengths[1]}
        return kernels.score_pairs(q, g, first, second, name, **given, **sizes)

    def spec(q, g, a=None):
        given = more | smooth | ({"alpha": a} if learned else {})
        return specified(q, g, first, second, lengths, name, given)

    inputs = (queries, gallery, alpha) if learned else (queries, gallery)
    got = results(ours, inputs, weights, None)
    plain = results(spec, inputs, weights, torch.float32)
    exact = results(spec, [x.double() for x in inputs], weights, torch.float64)
    for i, (result, single, right) in enumerate(zip(got, plain, exact, strict=True)):
        scale = right.abs().max() if right.ndim else weights.abs().sum() / alpha
        if i:
            assert result.dtype == inputs[i - 1].dtype
        assert_close_to_float64(result, single, right, scale.item())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("k", "size"), [(1, 1), (1, 4), (2, 3), (4, 4), (5, 8), (1, 32), (32, 3), (17, 32)]
)
def test_sizes(k, size, dtype):
    q, g = unit(5, k, 40, dtype=dtype), unit(6, size, 40, dtype=dtype, seed=1)
    check(q, g, ids(21, 5, 0), ids(21, 6, 1))


@pytest.mark.parametrize("dims", [32, 264, 520])
def test_dimensions_past_one_block(dims):
    check(unit(3, 4, dims), unit(4, 4, dims, seed=1), ids(7, 3, 0), ids(7, 4, 1))


@pytest.mark.parametrize("alpha", [0.1, 16.0, 80.0, 1000.0])
@pytest.mark.parametrize("kind", ["random", "flat", "opposite"])
def test_alpha_walk(alpha, kind):
    q, g = unit(4, 8, 32), unit(3, 8, 32, seed=1)
    if kind != "random":
        q = unit(1, 1, 32).repeat(4, 8, 1)
        g = (q if kind == "flat" else -q)[:3].clone()
    check(q, g, ids(9, 4, 0), ids(9, 3, 1), alpha=alpha)


@pytest.mark.parametrize("alpha", [0.5, 16.0, 300.0])
@pytest.mark.parametrize("log_mean", [False, True])
def test_gradient_for_alpha(alpha, log_mean):
    q, g = unit(5, 4, 40), unit(6, 3, 40, seed=1)
    learned = torch.tensor(alpha, device=DEVICE)
    check(q, g, ids(17, 5, 0), ids(17, 6, 1), alpha=learned, log_mean=log_mean)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, interpreting inf * 0
def test_padding_never_matters(learned):
    q, g = unit(5, 7, 40), unit(6, 4, 40, seed=1)
    lengths = torch.tensor([1, 7, 3, 2, 6]), torch.tensor([4, 1, 2, 3, 1, 4])
    lengths = tuple(x.to(DEVICE) for x in lengths)
    first, second = ids(17, 5, 0), ids(17, 6, 1)
    alpha = torch.tensor(16.0, device=DEVICE) if learned else 16.0
    check(q, g, first, second, lengths, alpha=alpha, log_mean=True)
    q[torch.arange(7, device=DEVICE) >= lengths[0][:, None]] = torch.nan
    g[torch.arange(4, device=DEVICE) >= lengths[1][:, None]] = torch.inf
    check(q, g, first, second, lengths, alpha=alpha, log_mean=True)


@pytest.mark.parametrize("name", ["chamfer", "mil", "maxsim"])
def test_other_similarities(name):
    check(unit(5, 3, 40), unit(6, 4, 40, seed=1), ids(17, 5, 0), ids(17, 6, 1), name=name)


def test_a_set_in_many_pairs_is_shared_out():
    """One set has several chunks of pairs, of which the last is short; its neighbours have few."""
    first, second = ids(3 * CHUNK + 9, 4, 0), ids(3 * CHUNK + 9, 5, 1)
    first[: 2 * CHUNK + 5] = 2
    second[CHUNK:] = 0
    check(unit(4, 2, 32), unit(5, 3, 32, seed=1), first, second)


def test_work_is_shared_out_once():
    chosen = ids(5 * CHUNK, 7, 0)
    chosen[: 3 * CHUNK] = 4
    table = segments(chosen, 7)
    sizes = torch.bincount(chosen, minlength=7)
    assert table.starts.diff().equal(sizes)
    for owner, size in enumerate(sizes.tolist()):
        programs = (table.owners == owner).nonzero()[:, 0]
        assert len(programs) == max(1, -(-size // CHUNK)) and programs[0] == table.chunks[owner]
    assert chosen[table.pairs].equal(chosen.sort().values)


def test_ids_that_name_no_set():
    q, g = unit(3, 2, 32).requires_grad_(), unit(4, 2, 32, seed=1).requires_grad_()
    first, second = torch.tensor([0, -1, 2, 3]), torch.tensor([-1, 0, 1, 1])
    scores = kernels.score_pairs(q, g, first.to(DEVICE), second.to(DEVICE))
    assert scores.isneginf().tolist() == [True, True, False, True]
    scores.clamp(min=-10).sum().backward()
    assert q.grad[:2].eq(0).all() and q.grad[2].ne(0).any()
    assert g.grad[[0, 2, 3]].eq(0).all() and g.grad.isfinite().all()


def test_no_pairs_and_no_sets():
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    q = unit(3, 4, 32).requires_grad_()
    scores = kernels.score_pairs(q, unit(2, 4, 32), none, none)
    scores.sum().backward()
    assert scores.shape == (0,) and q.grad.eq(0).all()
    assert kernels.score_pairs(q, unit(0, 4, 32), none, none).shape == (0,)


def test_gradients_repeat_bit_for_bit_and_only_those_asked_for_are_computed():
    q, g = unit(5, 4, 72), unit(6, 4, 72, seed=1).requires_grad_()
    first, second = ids(90, 5, 0), ids(90, 6, 1)
    before = kernels.launches["add_pairs"]
    runs = [
        torch.autograd.grad(kernels.score_pairs(q, g, first, second).sum(), g) for _ in range(2)
    ]
    assert torch.equal(runs[0][0], runs[1][0])
    assert kernels.launches["add_pairs"] == before + 2


def test_ids_must_be_lists_of_one_length():
    q, some = unit(2, 4, 32), ids(3, 2, 0)
    with pytest.raises(ValueError, match="3 query ids and 2"):
        kernels.score_pairs(q, q, some, some[:2])
    with pytest.raises(TypeError, match="gallery_ids must be integers"):
        kernels.score_pairs(q, q, some, some.float())
    with pytest.raises(ValueError, match="query_ids must be"):
        kernels.score_pairs(q, q, some[None], some)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # opcheck's own
def test_torch_checks_the_operators(learned):
    q, g = unit(2, 4, 32).requires_grad_(), unit(3, 3, 32, seed=1).requires_grad_()
    alpha = torch.tensor(16.0, device=DEVICE, requires_grad=True) if learned else None
    first, second = ids(5, 2, 0), ids(5, 3, 1)
    lengths = torch.tensor([4, 2], device=DEVICE), None
    arguments = (q, g, first, second, 16.0, alpha, True, "smooth_chamfer", *lengths, True)
    torch.library.opcheck(torch.ops.divse.score_pairs.default, arguments)
    weights = torch.rand(5, 4, 3, device=DEVICE)
    arguments = (torch.randn(5, device=DEVICE), weights, q.detach(), g.detach(), first, second)
    torch.library.opcheck(torch.ops.divse.pairs_backward.default, (*arguments, None))


def test_compiles_as_one_graph():
    def loss(q, g):
        return kernels.score_pairs(torch.nn.functional.normalize(q, dim=-1), g, a, b).square().sum()

    a, b = ids(9, 3, 0), ids(9, 4, 1)
    leaves = [unit(3, 4, 32).requires_grad_(), unit(4, 4, 32, seed=1).requires_grad_()]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for x, y in zip(torch.autograd.grad(compiled(*leaves), leaves), expected, strict=True):
        torch.testing.assert_close(x, y)
