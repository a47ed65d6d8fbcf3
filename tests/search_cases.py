"""Sets, bitmaps and the full sort that the tests of Triton search share."""

import torch

import divse_kernels as kernels
from divse.similarity.topk import ordered_topk
from divse_kernels.best import Best
from divse_kernels.launch import Side
from divse_kernels.search_driver import Driver, drive
from divse_kernels.search_scan import ExactScan

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def unit(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sets = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(sets, dim=-1).to(DEVICE, dtype)


def exact(*shape, seed=0):
    """Sets whose cosines are the same in any order of the sum: unit vectors of four halves."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(shape, generator=generator).argsort(-1)[..., :4]
    signs = torch.randint(2, places.shape, generator=generator) - 0.5
    return torch.zeros(shape).scatter_(-1, places, signs).to(DEVICE)


def bitmap(excluded):
    """(N,) bools as bytes, the first set in the lowest bit."""
    padded = torch.nn.functional.pad(excluded.to(torch.uint8), (0, -len(excluded) % 8)).view(-1, 8)
    return (padded << torch.arange(8, device=excluded.device)).sum(1).to(torch.uint8)


def sorted_fully(scores, topk, excluded=None):
    """The specification: a stable sort of all scores, filled up with -inf and -1."""
    scores, ids = ordered_topk(scores, scores.shape[1])
    if excluded is not None:
        left = [row[~excluded[row]] for row in ids]
        scores = torch.stack([s[~excluded[row]] for s, row in zip(scores, ids, strict=True)])
        ids = torch.stack(left)
    short = max(0, topk - scores.shape[1])
    scores = torch.nn.functional.pad(scores[:, :topk], (0, short), value=-torch.inf)
    return scores, torch.nn.functional.pad(ids[:, :topk], (0, short), value=-1)


def check(queries, gallery, topk, excluded=None, **options):
    """Positions must be those of a full sort of the kernel's own scores, which have their test."""
    found = kernels.search(
        queries, gallery, topk, excluded=None if excluded is None else bitmap(excluded), **options
    )
    scores = kernels.scores(queries, gallery, **options)
    expected, ids = sorted_fully(scores, topk, excluded)
    assert torch.equal(found.ids, ids)
    torch.testing.assert_close(found.scores, expected, rtol=1e-6, atol=1e-6)
    return found


def searched(queries, gallery, topk, width, parts=None, excluded=None, lengths=None):
    """A search with short rows, so that small galleries are many parts."""
    best = Best(len(queries), topk, queries.device, width)
    scan = ExactScan(Side.of(queries, None), 16.0, False, excluded, len(gallery))
    driver = Driver(scan, best)
    if parts is None:
        driver.feed((gallery, lengths), 0)
        driver.settle()
    else:
        drive(driver, parts, queries.device)
    return best.results()


def expect(found, queries, gallery, topk, excluded=None):
    scores, ids = sorted_fully(kernels.smooth_chamfer(queries, gallery), topk, excluded)
    assert torch.equal(found[1], ids)
    torch.testing.assert_close(found[0], scores, rtol=1e-6, atol=1e-6)
