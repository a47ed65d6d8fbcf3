"""Chamfer, MaxSim, MIL and long sets as they ship: tuned tiles, tensor cores, persistence."""

import pytest
import torch
from tolerance import assert_close_to_float64

from divse.similarity import reference

kernels = pytest.importorskip("divse_kernels")

pytestmark = pytest.mark.gpu


def unit(*shape, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    sets = torch.randn(*shape, generator=generator, device="cuda")
    return torch.nn.functional.normalize(sets, dim=-1).to(dtype)


@pytest.fixture(autouse=True)
def plain_float32():
    """The fp32 reference must not be rounded to TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def check(queries, gallery, similarity, lengths=None):
    """Compare a sample of the scores; `lengths` are those of the gallery."""
    scores = kernels.scores(queries, gallery, similarity, gallery_lengths=lengths)
    some = slice(None, None, max(1, len(queries) // 8)), slice(None, None, len(gallery) // 64 + 1)
    columns = None
    if lengths is not None:
        columns = torch.arange(gallery.shape[1], device="cuda") < lengths[some[1], None]
    plain, exact = (
        getattr(reference, similarity)(
            torch.einsum("bkd,nld->bnkl", queries[some[0]].to(t), gallery[some[1]].to(t)),
            columns=None if columns is None else columns[None],
        )
        for t in (torch.float32, torch.float64)
    )
    assert_close_to_float64(scores[some], plain, exact, scale=exact.abs().max().item())


@pytest.mark.parametrize("similarity", ["smooth_chamfer", "chamfer", "maxsim", "mil"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("b", "n", "k", "size", "dims"),
    [
        (1024, 4096, 4, 4, 1024),  # persistent, one program a processor
        (1024, 8192, 4, 4, 256),  # two programs a processor
        (128, 2048, 32, 32, 128),
        (32, 1000, 32, 300, 128),  # ColBERT: rows resident
        (1, 1000, 32, 200, 128),
        (4, 100, 32, 1024, 128),  # ColPali
        (3, 40, 1000, 700, 128),  # parts, two passes
        (16, 200, 100, 64, 1024),  # rows not resident
        (5, 3000, 100, 4, 128),  # short sets along the rows
    ],
)
def test_every_tile(b, n, k, size, dims, dtype, similarity):
    queries, gallery = unit(b, k, dims, dtype=dtype), unit(n, size, dims, dtype=dtype, seed=1)
    check(queries, gallery, similarity)
    lengths = torch.randint(1, size + 1, (n,), device="cuda")
    check(queries, gallery, similarity, lengths)


@pytest.mark.parametrize("similarity", ["smooth_chamfer", "maxsim"])
def test_packed_is_padded(similarity):
    queries, gallery = unit(8, 32, 128), unit(500, 300, 128, seed=1)
    lengths = torch.randint(1, 301, (500,), device="cuda")
    packed = gallery[torch.arange(300, device="cuda") < lengths[:, None]]
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    scores = kernels.scores(queries, packed, similarity, gallery_offsets=offsets)
    padded = kernels.scores(queries, gallery, similarity, gallery_lengths=lengths)
    torch.testing.assert_close(scores, padded)
