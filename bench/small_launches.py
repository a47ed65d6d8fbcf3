"""Every operation through the GPU kernels on small, odd shapes, held to the reference.

What a memory checker can afford (bench/sanitize.py), and a first check on a new device. An
operation without a kernel says so and is no fault.

    python bench/small_launches.py [--impl cuda] [--device cuda|cpu] [--json] [--out [DIR]]
    TRITON_INTERPRET=1 python bench/small_launches.py --device cpu --few
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from harness import Verdict, gate
from report import Report, parser
from torch import Tensor

import divse
import divse_kernels
from divse_kernels import hopper
from divse_kernels.certified import CODE_STEP, certified_search
from divse_kernels.search import search_blocks


@dataclass(frozen=True)
class Small:
    """B query sets of K elements, N gallery sets of L, D dimensions."""

    b: int
    n: int
    k: int
    size: int
    dim: int
    dtype: torch.dtype = torch.bfloat16
    ragged: bool = False
    alpha: float = 16.0
    similarity: str = "smooth_chamfer"

    def __str__(self) -> str:
        """In words."""
        text = f"{self.similarity} {self.b} x {self.n} K={self.k} L={self.size} D={self.dim} "
        text += f"{str(self.dtype).removeprefix('torch.')} alpha={self.alpha:g}"
        return text + " ragged" * self.ragged

    def sets(self, device: torch.device) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Queries, gallery and the keywords that all operations take."""
        generator = torch.Generator().manual_seed(0)
        sides, lengths = [], {}
        for name, count, size in (("query", self.b, self.k), ("gallery", self.n, self.size)):
            values = torch.randn(count, size, self.dim, generator=generator)
            sides.append(torch.nn.functional.normalize(values, dim=-1).to(device, self.dtype))
            if self.ragged:
                drawn = torch.randint(1, size + 1, (count,), generator=generator)
                lengths[f"{name}_lengths"] = drawn.to(device)
        options = {"similarity": self.similarity, "unit_norm": False, **lengths}
        if self.similarity == "smooth_chamfer":
            options["alpha"] = self.alpha
        return *sides, options


HALF, FLOAT = torch.float16, torch.float32
CASES = (
    Small(9, 70, 4, 4, 64),
    Small(5, 37, 4, 4, 72, ragged=True),
    Small(3, 41, 6, 3, 136, HALF, ragged=True),
    Small(2, 19, 32, 17, 64, HALF),
    Small(7, 33, 1, 1, 40),
    Small(6, 50, 4, 4, 64, FLOAT),
    Small(5, 29, 8, 8, 64, alpha=60.0),
    Small(5, 29, 4, 4, 64, alpha=200.0),
    *(Small(5, 29, 5, 4, 64, similarity=name) for name in ("chamfer", "maxsim", "mil")),
    Small(3, 9, 70, 50, 64, similarity="maxsim", ragged=True),
    Small(2, 5, 32, 130, 128, ragged=True),
    Small(2, 4, 130, 150, 64, similarity="chamfer", ragged=True),
    Small(2, 4, 140, 133, 64, HALF, similarity="mil"),
    Small(2, 5, 40, 5, 136, FLOAT, alpha=200.0),
)
FEW = (
    Small(3, 9, 4, 4, 32, HALF),
    Small(2, 5, 3, 2, 48, HALF, ragged=True),
    Small(2, 4, 4, 34, 32, HALF, similarity="maxsim"),
)
#: What the CUDA kernel serves.
PLAIN = (
    Small(9, 300, 4, 4, 72),
    Small(70, 5, 4, 4, 520, HALF, alpha=60.0),
    *(Small(5, 37, size, size, 136) for size in (2, 8, 16, 32)),
)
Operation = Callable[[Tensor, Tensor, dict[str, Any]], Tensor]


def scores(q: Tensor, g: Tensor, options: dict[str, Any]) -> Tensor:
    """All pairs."""
    return divse.score(q, g, **options)


def gradient(q: Tensor, g: Tensor, options: dict[str, Any]) -> Tensor:
    """Gradients of a weighted sum of all scores, both sides."""
    q, g = q.detach().requires_grad_(), g.detach().requires_grad_()
    return flat_gradient(divse.score(q, g, **options), q, g)


def flat_gradient(found: Tensor, *inputs: Tensor) -> Tensor:
    """Gradients of a weighted sum of what was found, one after the other."""
    weights = torch.arange(found.numel(), device=found.device, dtype=found.dtype)
    total = (found * weights.view_as(found).cos()).sum()
    return torch.cat([x.flatten() for x in torch.autograd.grad(total, inputs)])


def log_sum_exps(q: Tensor, g: Tensor, options: dict[str, Any]) -> Tensor:
    """Gradients of log-sum-exps of all scores with sets of other groups, both ways."""
    q, g = q.detach().requires_grad_(), g.detach().requires_grad_()
    own, theirs = groups_of(q, g)
    if options["impl"] == "reference":
        scores = divse.score(q, g, **options).masked_fill(own[:, None] == theirs, -torch.inf)
        found = scores.logsumexp(1), scores.logsumexp(0)
    else:
        found = divse_kernels.row_column_lse(q, g, own, theirs, **of_kernels(options))
    return flat_gradient(torch.cat(found), q, g)


def rbf_mean(q: Tensor, g: Tensor, options: dict[str, Any]) -> Tensor:
    """Gradients of the mean of an RBF kernel, of elements of both sides and of one side."""
    x, y = (sets.flatten(0, 1).detach().requires_grad_() for sets in (q, g))
    if options["impl"] == "reference":
        across, within = ((torch.cdist(x, other) * -0.5).exp().mean() for other in (y, x))
    else:
        across, within = divse_kernels.rbf_mean(x, y), divse_kernels.rbf_mean(x)
    return torch.cat([flat_gradient(across, x, y), flat_gradient(within, x)])


def pairs(q: Tensor, g: Tensor, options: dict[str, Any]) -> Tensor:
    """Set n with set n."""
    lengths = {"a_lengths": options.get("query_lengths"), "b_lengths": None}
    if options.get("gallery_lengths") is not None:
        lengths["b_lengths"] = options["gallery_lengths"][: len(q)]
    rest = {name: v for name, v in options.items() if not name.endswith("_lengths")}
    return divse.score_pairs(q, g[: len(q)], **rest, **lengths)


def candidates(q: Tensor, g: Tensor, options: dict[str, Any]) -> Tensor:
    """Some sets for each query, one of them none."""
    chosen = (torch.arange(len(q) * 5, device=q.device).view(len(q), 5) * 7) % len(g)
    chosen[0, 1] = -1
    return divse.score_candidates(q, g, chosen, **options).nan_to_num(neginf=0.0)


def search(q: Tensor, g: Tensor, options: dict[str, Any]) -> Tensor:
    """Scores of the best sets, every third excluded."""
    excluded = torch.arange(len(g), device=q.device) % 3 == 0
    return divse.search(q, g, 4, excluded=excluded, **options).scores.nan_to_num(neginf=0.0)


def int8_search(q: Tensor, g: Tensor, options: dict[str, Any]) -> Tensor:
    """Scores of the best sets, most of them ruled out by their codes."""
    if options["impl"] == "reference":
        return divse.search(q, g, 4, **options).scores
    codes = divse_kernels.quantise(g, options.get("gallery_lengths"))
    return certified_search(q, g, *codes, 4, **of_kernels(options))[0]


def streamed_search(q: Tensor, g: Tensor, options: dict[str, Any]) -> Tensor:
    """Scores of the best sets of a gallery that comes in blocks from the host."""
    if options["impl"] == "reference":
        return divse.search(q, g, 4, **options).scores
    lengths, options = options.get("gallery_lengths"), of_kernels(options)
    options.pop("gallery_lengths", None)
    starts = range(0, len(g), 16)
    cut = lambda x, i: None if x is None else x[i : i + 16].cpu()  # noqa: E731
    blocks = ((i, cut(g, i), cut(lengths, i)) for i in starts)
    return search_blocks(q, blocks, 4, **options)[0]


def of_kernels(options: dict[str, Any]) -> dict[str, Any]:
    """The keywords that the kernels' own functions take."""
    return {name: v for name, v in options.items() if name not in ("impl", "unit_norm")}


def groups_of(q: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Each query is alone in its group, each gallery set with one of them."""
    own, theirs = (torch.arange(len(sets), device=sets.device) for sets in (q, g))
    return own, theirs % len(q)


def hardest_negatives(q: Tensor, g: Tensor, options: dict[str, Any]) -> Tensor:
    """Scores of the hardest negatives that were found."""
    found = divse.hardest_negatives(q, g, groups_of(q, g), topn=2, **options)
    plain = options | {"impl": "reference"}
    all_scores = divse.score(q.double(), g.double(), **plain)
    return all_scores.gather(1, found.clamp_min(0)).masked_fill(found < 0, 0.0)


#: Function, and the operation of dispatch whose limits are its own.
OPERATIONS: dict[str, tuple[Operation, str]] = {
    "scores": (scores, "scores"),
    "gradient": (gradient, "scores"),
    "pairs": (pairs, "pairs"),
    "candidates": (candidates, "candidates"),
    "search": (search, "search"),
    "int8 search": (int8_search, "search"),
    "streamed search": (streamed_search, "search"),
    "hardest negatives": (hardest_negatives, "hardest_negatives"),
    "log-sum-exps": (log_sum_exps, "pairs"),
    "rbf mean": (rbf_mean, "pairs"),
}
DIFFERENTIATED = ("gradient", "log-sum-exps", "rbf mean")
#: Operations whose limit of elements is that of kernels of whole sets.
OF_SHORT_SETS = ("int8 search", "log-sum-exps")


def refusal(
    case: Small, needs: str, q: Tensor, g: Tensor, differentiated: bool, impl: str
) -> str | None:
    """Why an implementation has no kernel for a case, or None."""
    try:
        q = q.detach().requires_grad_(differentiated)
        divse.explain(q, g, case.similarity, operation=needs, impl=impl)
    except ValueError as error:
        return str(error).rsplit(": ", 1)[-1]
    return None


def check(case: Small, name: str, device: torch.device, impl: str) -> Verdict | str:
    """Verdict of one operation on one case, or why there is no kernel."""
    operation, needs = OPERATIONS[name]
    q, g, options = case.sets(device)
    why = refusal(case, needs, q, g, name in DIFFERENTIATED, impl)
    if why:
        return why
    if name in OF_SHORT_SETS and max(case.k, case.size) > divse_kernels.MAX_SIZE:
        return f"it takes sets of up to {divse_kernels.MAX_SIZE} elements"
    if name == "int8 search" and case.dim % CODE_STEP:
        return f"codes need D to be a multiple of {CODE_STEP}"
    run = partial(operation, options=options | {"impl": "reference"})
    exact, plain = run(q.double(), g.double()), run(q.float(), g.float())
    fused = operation(q, g, options | {"impl": impl})
    # gradients come in the inputs' type
    rounding = torch.finfo(fused.dtype).eps * float(exact.abs().max())
    return gate(fused, exact, plain, rounding if fused.dtype in (HALF, torch.bfloat16) else 0.0)


def main() -> int:
    """Run all operations on all cases."""
    arguments = parser(__doc__)
    arguments.add_argument("--few", action="store_true", help="tiny shapes: for the interpreter")
    arguments.add_argument("--impl", choices=("triton", "cuda"), default="triton")
    args = arguments.parse_args()
    report = Report("small_launches", args)
    cases = PLAIN if args.impl == "cuda" else FEW if args.few else CASES
    for case in cases:
        for name in OPERATIONS:
            verdict = check(case, name, report.device, args.impl)
            row = {"operation": name, "case": str(case)}
            if isinstance(verdict, str):
                report.add(**row, note=verdict)
            else:
                report.add(verdict, **row)
    if args.impl == "cuda":
        unused = int(divse_kernels.launches[hopper.NAME] == 0)
        report.add(Verdict(unused, 0), operation="kernels that never ran")
    for kernel, count in sorted(divse_kernels.launches.items()):
        report.add(operation="launches", case=kernel, note=str(count))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
