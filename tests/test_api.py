"""The public functions: kinds in and out, choice of implementation, errors, blocks, ties."""

import numpy as np
import pytest
import torch

import divse
from divse.similarity import blocked, topk


def sets(n, k=4, d=32, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=(n, k, d)).astype(dtype)


def test_numpy_in_numpy_out_tensor_in_tensor_out():
    q, g = sets(3), sets(7, seed=1)
    scores = divse.score(q, g)
    assert isinstance(scores, np.ndarray) and scores.dtype == np.float32
    tensor = divse.score(torch.from_numpy(q), torch.from_numpy(g))
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), scores)
    unit = divse.EmbeddingSets.of(q), divse.EmbeddingSets.of(g)
    np.testing.assert_allclose(divse.score(*unit), scores, atol=1e-6)
    np.testing.assert_array_equal(divse.smooth_chamfer(q, g), scores)


def test_float64_is_computed_in_float64():
    q, g = sets(3, dtype=np.float64), sets(4, seed=1, dtype=np.float64)
    assert divse.score(q, g).dtype == np.float64
    assert "float64" in divse.explain(q, g).passed_over["native"]


@pytest.mark.parametrize("name", divse.SIMILARITIES)
def test_pairs_and_candidates_are_entries_of_the_matrix(name):
    q, g = sets(5), sets(9, k=3, seed=1)
    ql, gl = np.array([1, 2, 3, 4, 4]), np.array([1, 2, 3] * 3)
    lengths = {"query_lengths": ql, "gallery_lengths": gl}
    scores = divse.score(q, g, name, impl="reference", **lengths)
    candidates = np.array([[0, 8, -1], [3, 3, 2], [-1, -1, -1], [7, 6, 5], [4, 0, 1]])
    got = divse.score_candidates(q, g, candidates, name, **lengths)
    expected = np.where(candidates < 0, -np.inf, np.take_along_axis(scores, candidates.clip(0), 1))
    np.testing.assert_allclose(got, expected, atol=1e-6)
    pairs = divse.score_pairs(q, g[:5], name, a_lengths=ql, b_lengths=gl[:5])
    np.testing.assert_allclose(pairs, np.diagonal(scores[:, :5]), atol=1e-6)


def test_candidates_in_blocks_are_the_same(monkeypatch):
    q, g = sets(9), sets(20, seed=1)
    candidates = np.random.default_rng(0).integers(-1, 20, (9, 5))
    whole = divse.score_candidates(q, g, candidates)
    monkeypatch.setattr(blocked, "_BLOCK_ELEMENTS", 1)
    np.testing.assert_array_equal(divse.score_candidates(q, g, candidates), whole)
    assert divse.score_candidates(q[:0], g, candidates[:0]).shape == (0, 5)


@pytest.mark.parametrize("impl", ["reference", "auto"])
@pytest.mark.parametrize("block", [1, 1 << 24])
def test_search_is_a_full_stable_sort(impl, block, monkeypatch):
    monkeypatch.setattr(blocked, "_BLOCK_ELEMENTS", block)
    q, g = sets(6), sets(40, seed=1)
    g[20:30] = g[3]  # eleven equal sets: ties go by position
    scores = divse.score(q, g, impl=impl)
    scores[:, 20:30] = scores[:, 3:4]
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :15]
    found = divse.search(q, g, 15, impl=impl)
    assert isinstance(found, divse.TopK)
    np.testing.assert_array_equal(found.ids, expected)
    np.testing.assert_allclose(found.scores, np.take_along_axis(scores, expected, 1), atol=1e-6)


def test_search_of_other_similarities_and_lengths():
    q, g = sets(3), sets(12, seed=1)
    gl = np.arange(12) % 4 + 1
    for name in divse.SIMILARITIES:
        scores = divse.score(q, g, name, gallery_lengths=gl)
        found = divse.search(q, g, 12, name, gallery_lengths=gl)
        np.testing.assert_array_equal(found.ids, np.argsort(-scores, 1, kind="stable"))


def test_ordered_topk_orders_negative_zero_and_ties():
    scores = torch.tensor([[-0.0, 0.0, -1.0, 2.0, 2.0, -torch.inf, -1.0]])
    best, ids = topk.ordered_topk(scores, 7)
    assert ids.tolist() == [[3, 4, 0, 1, 2, 6, 5]]
    assert best.tolist() == [[2.0, 2.0, 0.0, 0.0, -1.0, -1.0, -torch.inf]]


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_a_set_that_is_not_a_number_is_never_best(impl):
    q, g = sets(1), sets(5, seed=1)
    g[3, 0] = np.nan
    assert divse.search(q, g, 5, impl=impl).ids[0, -1] == 3


def test_pairs_are_scored_in_float32_under_autocast():
    a, b = torch.from_numpy(sets(3)), torch.from_numpy(sets(3, seed=1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(divse.score_pairs(a, b), divse.score_pairs(a.clone(), b))
        assert divse.score_pairs(a, b).dtype == torch.float32


def test_second_gradients_through_the_native_kernel_are_refused():
    q = torch.from_numpy(sets(2)).requires_grad_()
    scores = divse.score(q, torch.from_numpy(sets(3, seed=1)), impl="native")
    (first,) = torch.autograd.grad(scores.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="no second gradients"):
        first.sum().backward()


@pytest.mark.parametrize("impl", ["reference", "native"])
def test_excluded_sets_are_never_found(impl):
    q, g = sets(2), sets(19, seed=1)
    out = np.random.default_rng(0).random(19) < 0.6
    scores = np.where(out, -np.inf, divse.score(q, g, impl="reference"))
    found = divse.search(q, g, 19, excluded=out, impl=impl)
    kept = int((~out).sum())
    expected = np.argsort(-scores, 1, kind="stable")
    np.testing.assert_array_equal(found.ids[:, :kept], expected[:, :kept])
    assert (found.ids[:, kept:] == -1).all() and np.isneginf(found.scores[:, kept:]).all()
    with pytest.raises(ValueError, match="expected bool"):
        divse.search(q, g, 3, excluded=out[:4])


def test_several_hardest_negatives():
    q, g = sets(4), sets(6, seed=1)
    groups = np.array([0, 1, 2, 3]), np.array([0, 0, 0, 0, 0, 1])
    scores = divse.score(q, g)
    scores[groups[0][:, None] == groups[1][None]] = -np.inf
    expected = np.argsort(-scores, 1, kind="stable")[:, :3]
    expected[0, 1:] = -1
    np.testing.assert_array_equal(divse.hardest_negatives(q, g, groups, topn=3), expected)


def test_hardest_negatives(monkeypatch):
    monkeypatch.setattr(blocked, "_BLOCK_ELEMENTS", 64)
    q, g = sets(4), sets(12, seed=1)
    groups = np.arange(4), np.arange(12) // 3
    masked = divse.score(q, g)
    masked[groups[0][:, None] == groups[1][None]] = -9
    np.testing.assert_array_equal(divse.hardest_negatives(q, g, groups), masked.argmax(1))
    alone = divse.hardest_negatives(q[:1], g[:3], (np.zeros(1, int), np.zeros(3, int)))
    assert alone.tolist() == [-1]
    with pytest.raises(ValueError, match="group ids"):
        divse.hardest_negatives(q, g, (np.arange(3), groups[1]))


def test_a_named_implementation_never_falls_back():
    q, g = sets(2), sets(3)
    with pytest.raises(ValueError, match="no kernel for mp"):
        divse.score(q, g, "mp", impl="native")
    with pytest.raises(ValueError, match="float64"):
        divse.score(q.astype(np.float64), g.astype(np.float64), impl="native")
    with pytest.raises(ValueError, match="expected auto, cuda, triton, native, reference"):
        divse.score(q, g, impl="gpu")


def test_explain_and_calls_agree():
    q, g = sets(2), sets(3)
    for impl in ("reference", "native", "triton"):
        assert divse.explain(q, g, impl=impl).impl == impl
        before = divse.calls[f"{impl}.scores"]
        divse.score(q, g, impl=impl)
        assert divse.calls[f"{impl}.scores"] == before + 1
    assert divse.explain(q, g).impl == "native"
    assert str(divse.explain(q, g, "mp")) == "reference (not native: it has no kernel for mp)"


@pytest.mark.parametrize("impl", ["native", "triton"])
@pytest.mark.parametrize("learn_alpha", [False, True])
def test_fused_gradients_are_those_of_the_specification(impl, learn_alpha):
    results = []
    for chosen, dtype in ((impl, torch.float32), ("reference", torch.float64)):
        q = torch.from_numpy(sets(3)).to(dtype).requires_grad_()
        g = torch.from_numpy(sets(5, k=3, seed=1)).to(dtype).requires_grad_()
        alpha = torch.tensor(12.0, dtype=dtype, requires_grad=True) if learn_alpha else 12.0
        scores = divse.score(
            q, g, alpha=alpha, gallery_lengths=torch.tensor([1, 2, 3, 3, 1]), impl=chosen
        )
        (scores * torch.linspace(-1, 1, 15).view(3, 5)).sum().backward()
        results.append([q.grad, g.grad] + ([alpha.grad] if learn_alpha else []))
    for got, exact in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), exact, atol=1e-6, rtol=1e-5)


def test_half_precision_and_mixed_inputs():
    q, g = sets(3), sets(5, seed=1)
    exact = divse.score(q.astype("f8"), g.astype(np.float16).astype("f8"))
    np.testing.assert_allclose(divse.score(q, g.astype(np.float16)), exact, atol=1e-3)
    unit = divse.EmbeddingSets.of(q), divse.EmbeddingSets.of(g.astype(np.float16))
    exact = divse.score(*(u.values.astype("f8") for u in unit), unit_norm=False)
    for impl in ("reference", "native", "triton"):
        np.testing.assert_allclose(divse.score(*unit, impl=impl), exact, atol=1e-6)
    brain = torch.from_numpy(q).bfloat16(), torch.from_numpy(g).bfloat16()
    assert divse.score(*brain).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"alpha": 0}, ValueError, "alpha: got 0"),
        ({"alpha": float("nan")}, ValueError, "alpha: got nan"),
        ({"alpha": 1001}, ValueError, r"\(0, 1000\]"),
        ({"alpha": "16"}, TypeError, "alpha: got str"),
        ({"alpha": torch.ones(2)}, ValueError, "one number"),
        ({"alpha": torch.tensor(-5.0)}, ValueError, "alpha: got -5.0"),
        ({"similarity": "cosine"}, ValueError, "expected one of smooth_chamfer"),
        ({"similarity": "mil", "scale": 2.0}, TypeError, "mil takes no parameters"),
        ({"similarity": "mil", "log_mean": True}, ValueError, "log_mean"),
        ({"similarity": "maxsim", "reduction": "max"}, ValueError, "reduction"),
        ({"gallery": sets(3, d=16)}, ValueError, "32 dimensions and the gallery 16"),
        ({"query_lengths": np.array([1, 2])}, ValueError, r"expected \(3,\)"),
        ({"query_lengths": np.array([1, 2, 5])}, ValueError, "set 2 has length 5"),
    ],
)
def test_bad_arguments_are_refused(change, error, message):
    arguments = {"queries": sets(3), "gallery": sets(4, seed=1), **change}
    with pytest.raises(error, match=message):
        divse.score(**arguments)


@pytest.mark.parametrize("count", [0, 5, 1.5, True])
def test_bad_topk_is_refused(count):
    with pytest.raises((ValueError, TypeError), match="topk: got"):
        divse.search(sets(2), sets(4), count)


def test_bad_candidates_are_refused():
    q, g = sets(2), sets(4)
    for candidates, message in (
        (np.zeros((3, 2), int), "shape"),
        (np.zeros((2, 2)), "int64"),
        (np.full((2, 2), 4), "got positions 4 to 4"),
        (np.full((2, 2), -2), "got positions -2"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            divse.score_candidates(q, g, candidates)


def test_the_search_package_is_also_the_function():
    import divse.search.gallery  # noqa: F401  (binds the package's name again)

    assert divse.search(sets(2), sets(4), 2).ids.shape == (2, 2)
