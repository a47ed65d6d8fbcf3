"""Sets of more than 32 elements and their specification, which the tests of long sets share."""

import torch
from tolerance import EPS32, assert_close_to_float64

from divse.similarity import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIMILARITIES = {
    "smooth_chamfer": {},
    "shifted": {"alpha": 200.0},
    "log_mean": {"log_mean": True},
    "chamfer": {},
    "mil": {},
    "maxsim": {},
    "maxsim_mean": {"reduction": "mean"},
}


def unit(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sets = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(sets, dim=-1).to(DEVICE, dtype)


def mask(lengths, size):
    return None if lengths is None else torch.arange(size, device=DEVICE) < lengths[:, None]


def lengths_of(count, size, seed=0):
    found = torch.randint(1, size + 1, (count,), generator=torch.Generator().manual_seed(seed))
    found[0], found[-1] = 1, size
    return found.to(DEVICE)


def weights_of(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7)).to(DEVICE)


def called(name):
    """The similarity and its parameters."""
    similarity = {"shifted": "smooth_chamfer", "log_mean": "smooth_chamfer"}.get(name, name)
    return similarity.removesuffix("_mean"), SIMILARITIES[name]


def specified(queries, gallery, dtype, name, lengths=(None, None), **more):
    """The specification in `dtype` on the same stored values; padding read as zeros."""
    similarity, parameters = called(name)
    rows, columns = mask(lengths[0], queries.shape[1]), mask(lengths[1], gallery.shape[1])
    q, g = (
        s.to(dtype) if m is None else s.to(dtype).masked_fill(~m[..., None], 0.0)
        for s, m in ((queries, rows), (gallery, columns))
    )
    return getattr(reference, similarity)(
        torch.einsum("bkd,nld->bnkl", q, g),
        None if rows is None else rows[:, None],
        None if columns is None else columns[None],
        **parameters | more,
    )


def gradients(score, inputs, weights, dtype=None):
    """Gradients of the weighted sum of scores, computed in `dtype`, in the inputs' own types."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    scores = score(*(x.to(dtype) if dtype else x for x in leaves))
    return torch.autograd.grad(scores, leaves, weights.to(scores.dtype))


def assert_gradients(ours, spec, inputs, weights):
    """Hold all gradients to float64; the last input may be alpha, a tensor of no dimension.

    Weights of half-precision sets are rounded to float16, and a maximum, unlike many exponentials,
    has one weight alone: half a unit of its last place is allowed beside.
    """
    got = gradients(ours, inputs, weights)
    plain = gradients(spec, inputs, weights, torch.float32)
    exact = gradients(spec, [x.double() for x in inputs], weights, torch.float64)
    for result, near, true, value in zip(got, plain, exact, inputs, strict=True):
        assert result.dtype == value.dtype and result.shape == value.shape
        # The gradient for alpha is the small difference of two sums of such size.
        scale = true.abs().max() if value.ndim else weights.abs().sum() / value
        if value.dtype.itemsize == 2:
            scale = scale * (1 + 2.0**-11 / (8 * EPS32))
        assert_close_to_float64(result, near, true, scale.item())
