"""Log-sum-exps of rows and columns, and their gradients, against float64 autograd."""

import pytest
import torch
from tolerance import EPS32, assert_close_to_float64

from divse.similarity.table import get_similarity

kernels = pytest.importorskip("divse_kernels")
forward = pytest.importorskip("divse_kernels.row_column_lse")
products = pytest.importorskip("divse_kernels.products")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.filterwarnings(  # numpy's, interpreting inf * 0
    "ignore:invalid value:RuntimeWarning"
)


def unit(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sets = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(sets, dim=-1).to(DEVICE, dtype)


def groups(count, sets, seed=0):
    drawn = torch.randint(0, count, (sets,), generator=torch.Generator().manual_seed(seed))
    return drawn.to(DEVICE)


def mask(sets, lengths):
    return (
        None if lengths is None else torch.arange(sets.shape[1], device=DEVICE) < lengths[:, None]
    )


def specified(q, g, own, theirs, temperature, lengths=(None, None), name="smooth_chamfer", **given):
    cosines = torch.einsum("bkd,nld->bnkl", q, g)
    rows, columns = mask(q, lengths[0]), mask(g, lengths[1])
    rows = rows if rows is None else rows[:, None]
    columns = columns if columns is None else columns[None]
    scores = get_similarity(name).reduce(cosines, rows, columns, **given)
    x = scores.masked_fill(own[:, None] == theirs, -torch.inf) / temperature
    return x.logsumexp(1), x.logsumexp(0)


def weighed(pair):
    """A number of both directions that weighs every log-sum-exp in its own way."""
    finite = [x.masked_fill(x == -torch.inf, 0.0) for x in pair]
    return sum((x * torch.arange(1, len(x) + 1, device=DEVICE).cos()).sum() for x in finite)


def results(function, inputs, dtype):
    """Both log-sum-exps and the gradients for the inputs, computed in `dtype`, in leaf types."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    found = function(*(x.to(dtype) if dtype else x for x in leaves))
    gradients = torch.autograd.grad(weighed(found), leaves)
    return [x.detach() for x in found], gradients


def check(q, g, own, theirs, temperature=0.05, lengths=(None, None), name=None, **given):
    """Compare values and every gradient, alpha's too if it is a tensor."""
    given |= {"name": name} if name else {}
    learned = isinstance(given.get("alpha"), torch.Tensor)
    inputs = (q, g, given.pop("alpha")) if learned else (q, g)

    def call(function, q, g, *alpha, **rest):
        rest |= given | ({"alpha": alpha[0]} if alpha else {})
        return function(q, g, own, theirs, temperature=temperature, **rest)

    def ours(*x):
        lse = kernels.row_column_lse
        rest = {"query_lengths": lengths[0], "gallery_lengths": lengths[1]}
        if name:
            rest["similarity"] = given["name"]
            return lse(*x, own, theirs, temperature=temperature, **rest)
        return call(lse, *x, **rest)

    def spec(*x):
        return call(specified, *x, lengths=lengths)

    got, gradients = results(ours, inputs, None)
    plain, plain_gradients = results(spec, inputs, torch.float32)
    exact, exact_gradients = results(spec, [x.double() for x in inputs], torch.float64)
    for a, b, c in zip(got, plain, exact, strict=True):
        none = c == -torch.inf
        assert torch.equal(a == -torch.inf, none)
        a, b, c = (x.masked_fill(none, 0.0) for x in (a, b, c))
        assert_close_to_float64(a, b, c, scale=4 / temperature)
    for a, b, c, x in zip(gradients, plain_gradients, exact_gradients, inputs, strict=True):
        assert a.dtype == x.dtype and a.shape == x.shape
        # A sum of as many terms as there are sets, the exponents as exact as the scores / t.
        half = 0.0 if x.dtype == torch.float32 else torch.finfo(x.dtype).eps / (8 * EPS32)
        assert_close_to_float64(a, b, c, scale=(8 / temperature + half) * float(c.abs().max()))


@pytest.mark.parametrize(("k", "size"), [(1, 1), (2, 3), (4, 4), (6, 1), (17, 32)])
def test_sizes(k, size):
    check(unit(5, k, 40), unit(7, size, 40, seed=1), groups(3, 5), groups(3, 7, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("b", "n"), [(1, 2), (17, 35), (140, 3)])
def test_odd_shapes_span_several_tiles(b, n, dtype):
    q, g = unit(b, 4, 72, dtype=dtype), unit(n, 4, 72, dtype=dtype, seed=1)
    check(q, g, groups(4, b), groups(4, n, 1))


@pytest.mark.parametrize("alpha", [0.5, 30.0, 60.0, 300.0])
@pytest.mark.parametrize("log_mean", [False, True])
def test_every_path_of_alpha(alpha, log_mean):
    q, g = unit(6, 4, 32), unit(5, 3, 32, seed=1)
    check(q, g, groups(3, 6), groups(3, 5, 1), alpha=alpha, log_mean=log_mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("log_mean", [False, True])
def test_learned_alpha(dtype, log_mean):
    q, g = unit(6, 4, 32, dtype=dtype), unit(5, 3, 32, dtype=dtype, seed=1)
    alpha = torch.tensor(16.0, device=DEVICE)
    check(q, g, groups(3, 6), groups(3, 5, 1), alpha=alpha, log_mean=log_mean)


@pytest.mark.parametrize("temperature", [1e-3, 0.01, 1.0, 50.0])
def test_temperatures(temperature):
    check(unit(6, 2, 32), unit(5, 2, 32, seed=1), groups(3, 6), groups(3, 5, 1), temperature)


@pytest.mark.parametrize("name", ["chamfer", "mil", "maxsim"])
def test_other_similarities(name):
    q, g, own, theirs = unit(5, 3, 40), unit(9, 4, 40, seed=1), groups(3, 5), groups(3, 9, 1)
    check(q, g, own, theirs, name=name)
    check(g, q, theirs, own, name=name)


def test_padding_never_matters():
    q, g, own, theirs = unit(5, 7, 40), unit(6, 4, 40, seed=1), groups(3, 5), groups(3, 6, 1)
    lengths = torch.tensor([1, 7, 3, 2, 6]), torch.tensor([4, 1, 2, 3, 1, 4])
    lengths = tuple(x.to(DEVICE) for x in lengths)
    check(q, g, own, theirs, lengths=lengths)

    def ours(q, g):
        return kernels.row_column_lse(q, g, own, theirs, 16.0, False, 0.05, *lengths)

    before = results(ours, (q, g), None)
    q[torch.arange(7, device=DEVICE) >= lengths[0][:, None]] = torch.nan
    g[torch.arange(4, device=DEVICE) >= lengths[1][:, None]] = torch.inf
    after = results(ours, (q, g), None)
    for first, second in zip(before, after, strict=True):
        for a, b in zip(first, second, strict=True):
            torch.testing.assert_close(b, a, rtol=0, atol=0)


@pytest.mark.parametrize(("b", "n"), [(1, 2), (17, 35), (140, 3)])
def test_maxima_are_those_of_the_scores_of_other_groups(monkeypatch, b, n):
    """In one band and in several; without a gradient, and -inf where there is no other group."""
    q, g = unit(b, 4, 40).requires_grad_(), unit(n, 4, 40, seed=1)
    own, theirs = groups(2, b), groups(2, n, 1)
    s = kernels.scores(q, g).masked_fill(own[:, None] == theirs, -torch.inf)
    for partials in (forward.PARTIALS, 1):
        monkeypatch.setattr(forward, "PARTIALS", partials)
        found = kernels.row_column_lse(q, g, own, theirs, temperature=0.05, with_maxima=True)
        assert [x.requires_grad for x in found] == [True, True, False, False]
        torch.testing.assert_close(found[2], s.amax(1).detach(), atol=1e-6, rtol=0)
        torch.testing.assert_close(found[3], s.amax(0).detach(), atol=1e-6, rtol=0)


def test_sets_without_negatives():
    """Query 0 and all gallery sets are of one group; the other queries have negatives."""
    q, g = unit(3, 2, 32).requires_grad_(), unit(4, 2, 32, seed=1).requires_grad_()
    own, theirs = torch.tensor([7, 1, 2], device=DEVICE), torch.full((4,), 7, device=DEVICE)
    rows, columns = kernels.row_column_lse(q, g, own, theirs, temperature=0.1)
    assert rows.isneginf().tolist() == [True, False, False] and columns.isfinite().all()
    (rows.exp().sum() + columns.sum()).backward()
    assert q.grad[0].eq(0).all() and q.grad[1:].ne(0).any() and g.grad.isfinite().all()
    same = kernels.row_column_lse(q, g, own[:1].expand(3), theirs)
    assert all(x.isneginf().all() for x in same)
    sum(x.sum() for x in same).backward()
    assert q.grad.isfinite().all()


def test_no_sets():
    own, none = groups(2, 3), groups(2, 0)
    q = unit(3, 4, 32).requires_grad_()
    rows, columns = kernels.row_column_lse(q, unit(0, 4, 32), own, none)
    assert rows.isneginf().all() and rows.shape == (3,) and columns.shape == (0,)
    rows.exp().sum().backward()
    assert q.grad.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bands_and_chunks_add_up(monkeypatch, dtype):
    """Memory for a tile of rows at a time, and for 16 KiB of weights."""
    monkeypatch.setattr(forward, "PARTIALS", 1)
    monkeypatch.setattr(products, "WORKSPACE", 1 << 14)
    q, g = unit(150, 3, 32, dtype=dtype), unit(40, 4, 32, dtype=dtype, seed=1)
    before = kernels.launches["row_column_lse"]
    check(q, g, groups(9, 150), groups(9, 40, 1))
    assert kernels.launches["row_column_lse"] - before >= 3


@pytest.mark.parametrize(("rows", "columns"), [(65_536, 65_536), (10**7, 10), (4, 10**6), (1, 1)])
def test_what_tiles_leave_is_bounded(rows, columns):
    row_tiles, column_tiles = -(-rows // 64), -(-columns // 32)
    count = forward.band_tiles(row_tiles, 64, column_tiles, columns)
    assert 1 <= count <= row_tiles
    assert 8 * count * (column_tiles * 64 + columns) <= forward.PARTIALS or count == 1


def test_repeats_bit_for_bit():
    q, g, own, theirs = unit(70, 2, 32), unit(90, 2, 32, seed=1), groups(9, 70), groups(9, 90, 1)

    def ours(q, g):
        return kernels.row_column_lse(q, g, own, theirs, temperature=0.05)

    first, second = results(ours, (q, g), None), results(ours, (q, g), None)
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_wrong_arguments_are_refused():
    q, ids = unit(2, 4, 32), groups(2, 2)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        kernels.row_column_lse(q, q, ids, ids, temperature=0)
    with pytest.raises(ValueError, match="gallery_groups must be"):
        kernels.row_column_lse(q, q, ids, ids[:1])


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # opcheck's own
def test_torch_checks_the_operators(learned):
    q, g = unit(2, 4, 32).requires_grad_(), unit(3, 3, 32, seed=1).requires_grad_()
    alpha = torch.tensor(16.0, device=DEVICE, requires_grad=True) if learned else None
    ids = torch.arange(2, device=DEVICE), torch.arange(3, device=DEVICE)
    lengths = torch.tensor([4, 2], device=DEVICE), None
    given = (*ids, 0.1, 16.0, alpha, False, "smooth_chamfer", *lengths)
    torch.library.opcheck(torch.ops.divse.row_column_lse.default, (q, g, *given))
    given = [x.detach() if isinstance(x, torch.Tensor) else x for x in (q, g, *given)]
    lse = torch.ops.divse.row_column_lse(*given)[:2]
    grads = [torch.ones_like(x) for x in lse]
    arguments = (*grads, *lse, *given, True, False, learned)
    torch.library.opcheck(torch.ops.divse.row_column_lse_backward.default, arguments)


def test_compiles_as_one_graph():
    own, theirs = groups(3, 5), groups(3, 6, 1)

    def loss(q, g, alpha):
        return weighed(kernels.row_column_lse(q * 1.0, g, own, theirs, alpha, temperature=0.1))

    q, g = unit(5, 2, 32).requires_grad_(), unit(6, 2, 32, seed=1).requires_grad_()
    leaves = [q, g, torch.tensor(16.0, device=DEVICE, requires_grad=True)]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(*leaves), leaves)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
