"""The operators of the C++ kernels: registered as torch wants them, and seen by torch.compile."""

import numpy as np
import pytest
import torch
from native_cases import every_similarity, make_sets

import divse
from divse.similarity.native_ops import (
    native_candidates,
    native_candidates_backward,
    native_scores,
    native_scores_backward,
)

# opcheck looks at gradients of tensors that are no leaves.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
OPTIONS = ("smooth_chamfer", False, "sum")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def leaves(rng, b, n):
    alpha = torch.tensor(16.0, requires_grad=True)
    queries, gallery = (torch.from_numpy(make_sets(rng, s, 3, 8)) for s in (b, n))
    return queries.requires_grad_(), gallery.requires_grad_(), alpha


@pytest.mark.parametrize("keep", [False, True])
def test_scores_are_a_sound_operator(keep, rng):
    queries, gallery, alpha = leaves(rng, 18, 5)
    lengths = torch.tensor([1, 2, 3, 1, 2])
    torch.library.opcheck(native_scores, (queries, gallery, alpha, None, lengths, *OPTIONS, keep))
    with torch.no_grad():
        given = queries, gallery, alpha, None, lengths, *OPTIONS
        scores, cosines = native_scores(*given, keep)
        torch.library.opcheck(
            native_scores_backward,
            (scores, queries.data, gallery.data, alpha.data, cosines, *given[3:]),
        )


def test_candidates_are_a_sound_operator(rng):
    queries, gallery, alpha = leaves(rng, 4, 5)
    chosen = torch.tensor([[0, 3], [1, -1], [2, 2], [4, 0]])
    given = chosen, alpha, None, None, *OPTIONS
    torch.library.opcheck(native_candidates, (queries, gallery, *given))
    data = queries.data, gallery.data, chosen, alpha.data, None, None, *OPTIONS
    torch.library.opcheck(native_candidates_backward, (torch.randn(4, 2), *data))


@every_similarity
def test_compiled_in_one_graph(similarity, rng):
    options = {k: v for k, v in similarity.items() if k != "alpha"}

    def loss(queries, gallery):
        scores = divse.score(queries, gallery, impl="native", **options)
        pairs = divse.score_pairs(queries, gallery[: len(queries)], impl="native", **options)
        return scores.logsumexp(1).sum() + pairs.sum()

    queries, gallery, _ = leaves(rng, 20, 22)
    expected = torch.autograd.grad(loss(queries, gallery), (queries, gallery))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(
        torch.autograd.grad(compiled(queries, gallery), (queries, gallery)), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@every_similarity
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_operation_runs_natively_by_default(similarity, dtype, rng):
    queries, gallery = (torch.from_numpy(make_sets(rng, n, 3, 8)).to(dtype) for n in (18, 20))
    chosen = torch.tensor(rng.integers(-1, 20, (18, 4)))
    excluded = rng.random(20) < 0.3

    def everything(impl):
        options = {"impl": impl, "unit_norm": False, **similarity}
        return (
            divse.score(queries, gallery, **options),
            divse.score_pairs(queries, gallery[:18], **options),
            divse.score_candidates(queries, gallery, chosen, **options),
            *divse.search(queries, gallery, 5, excluded=excluded, **options),
        )

    before = dict(divse.similarity.calls)
    for ours, theirs in zip(everything("auto"), everything("reference"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
    for operation in ("scores", "pairs", "candidates", "search"):
        name = f"native.{operation}"
        assert divse.similarity.calls[name] == before.get(name, 0) + 1


@every_similarity
def test_gradients_of_every_operation(similarity, rng):
    """In whichever way cosines reach the backward pass: kept, or computed again."""
    for b in (3, 18):
        queries, gallery, _ = leaves(rng, b, 20)
        chosen = torch.tensor(rng.integers(-1, 20, (b, 4)))

        def gradients(impl, queries=queries, gallery=gallery, chosen=chosen, b=b):
            options = {"impl": impl, **similarity}
            some = divse.score_candidates(queries, gallery, chosen, **options)
            loss = divse.score(queries, gallery, **options).square().sum()
            loss = loss + divse.score_pairs(queries, gallery[:b], **options).sum()
            loss = loss + some[chosen >= 0].square().sum()
            return torch.autograd.grad(loss, (queries, gallery))

        for ours, theirs in zip(gradients("native"), gradients("reference"), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
