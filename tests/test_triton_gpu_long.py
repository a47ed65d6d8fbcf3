"""Gradients, candidates and search of long sets as they ship: tuned tiles on tensor cores."""

import pytest
import torch
from long_cases import assert_gradients, called, gradients, specified
from tolerance import assert_close_to_float64

kernels = pytest.importorskip("divse_kernels")

pytestmark = pytest.mark.gpu

SIMILARITIES = ["smooth_chamfer", "shifted", "chamfer", "maxsim", "mil"]


def unit(*shape, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    sets = torch.randn(*shape, generator=generator, device="cuda")
    return torch.nn.functional.normalize(sets, dim=-1).to(dtype)


def lengths_of(count, size):
    return torch.randint(1, size + 1, (count,), device="cuda")


@pytest.fixture(autouse=True)
def plain_float32():
    """The fp32 reference must not be rounded to TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("b", "n", "k", "size", "dims"),
    [
        (16, 24, 32, 300, 128),  # ColBERT: rows resident
        (8, 8, 32, 1024, 128),  # ColPali
        (5, 6, 130, 150, 128),  # parts, two launches
        (3, 4, 1000, 700, 64),
        (7, 9, 100, 63, 1024),  # rows not resident
        (6, 50, 97, 4, 128),  # short sets along the rows
        (9, 10, 33, 65, 520),
    ],
)
def test_gradients(b, n, k, size, dims, dtype, name):
    queries, gallery = unit(b, k, dims, dtype=dtype), unit(n, size, dims, dtype=dtype, seed=1)
    weights = torch.randn(b, n, device="cuda")
    similarity, parameters = called(name)
    for lengths in ((None, None), (lengths_of(b, k), lengths_of(n, size))):
        more = dict(zip(("query_lengths", "gallery_lengths"), lengths, strict=True), **parameters)

        def ours(q, g, more=more):
            return kernels.scores(q, g, similarity, **more)

        def spec(q, g, lengths=lengths):
            return specified(q, g, q.dtype, name, lengths)

        assert_gradients(ours, spec, (queries, gallery), weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_learned_alpha(dtype):
    queries, gallery = unit(16, 32, 128, dtype=dtype), unit(24, 300, 128, dtype=dtype, seed=1)
    alpha, weights = torch.tensor(16.0, device="cuda"), torch.randn(16, 24, device="cuda")
    assert_gradients(
        lambda q, g, a: kernels.scores(q, g, alpha=a),
        lambda q, g, a: specified(q, g, q.dtype, "smooth_chamfer", alpha=a),
        (queries, gallery, alpha),
        weights,
    )


def test_gradients_repeat_and_memory_is_bounded(monkeypatch):
    """64 x 64 sets of 32 and 1,024: 256 MiB of fp16 weights, and not in memory at once."""
    monkeypatch.setattr("divse_kernels.products.WORKSPACE", 32 << 20)
    sides, weights = (unit(64, 32, 128), unit(64, 1024, 128)), torch.randn(64, 64, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    runs = [
        gradients(lambda q, g: kernels.scores(q, g, "maxsim"), sides, weights) for _ in range(2)
    ]
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 192 << 20
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("k", "size", "dims"), [(32, 300, 128), (4, 1024, 128), (128, 63, 520), (130, 150, 128)]
)
def test_candidates(k, size, dims, dtype, mixed, name):
    """Of 16 bits, and with queries in float32."""
    queries = unit(6, k, dims, dtype=torch.float32 if mixed else dtype)
    gallery, lengths = unit(50, size, dims, dtype=dtype, seed=1), lengths_of(50, size)
    chosen = torch.randint(-1, 50, (6, 20), device="cuda")
    similarity, parameters = called(name)
    scores = kernels.score_candidates(
        queries, gallery, chosen, similarity, gallery_lengths=lengths, **parameters
    )
    assert torch.equal(scores.isinf(), chosen < 0)
    plain, exact = (
        specified(queries, gallery, kind, name, (None, lengths)).gather(1, chosen.clamp_min(0))
        for kind in (torch.float32, torch.float64)
    )
    found, plain, exact = (x.masked_fill(chosen < 0, 0.0) for x in (scores, plain, exact))
    assert_close_to_float64(found, plain, exact, exact.abs().max().item())


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize(("k", "size"), [(32, 300), (130, 150)])
def test_pairs_and_their_gradients(k, size, name):
    queries, gallery = unit(9, k, 128), unit(12, size, 128, seed=1)
    first, second = (torch.randint(n, (40,), device="cuda") for n in (9, 12))
    similarity, parameters = called(name)
    assert_gradients(
        lambda q, g: kernels.score_pairs(q, g, first, second, similarity, **parameters),
        lambda q, g: specified(q, g, q.dtype, name)[first, second],
        (queries, gallery),
        torch.randn(40, device="cuda"),
    )


@pytest.mark.parametrize("name", ["smooth_chamfer", "maxsim"])
def test_search(name):
    """A gallery on the device and one that comes from the host; float32 queries."""
    queries, gallery = unit(5, 32, 128, dtype=torch.float32), unit(3000, 300, 128, seed=1)
    lengths = lengths_of(3000, 300)
    options = {"similarity": name}
    found = kernels.search(queries, gallery, 50, gallery_lengths=lengths, **options)
    exact = torch.cat(
        [
            specified(
                queries, gallery[i : i + 100], torch.float64, name, (None, lengths[i : i + 100])
            )
            for i in range(0, 3000, 100)
        ],
        1,
    )
    best = exact.topk(50).values
    torch.testing.assert_close(found.scores.double(), best, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(exact.gather(1, found.ids), best, rtol=1e-5, atol=1e-5)
    blocks = (
        (i, gallery[i : i + 512].cpu(), lengths[i : i + 512].cpu()) for i in range(0, 3000, 512)
    )
    streamed = kernels.search_blocks(queries, blocks, 50, **options)
    assert torch.equal(streamed.ids, found.ids)
