"""Triton kernels for scores of all pairs of sets: Smooth-Chamfer, Chamfer, MaxSim and MIL.

Nothing of size (B K) x (N L) is ever in memory. Importing needs torch and triton, no GPU; with
TRITON_INTERPRET=1 set before, the kernels run on CPU tensors in Triton's interpreter.
"""

from divse_kernels.best import MAX_TOPK
from divse_kernels.candidates import score_candidates
from divse_kernels.certified import certified_search
from divse_kernels.int8_codes import quantise
from divse_kernels.launch import launches
from divse_kernels.long_tile import LONGEST
from divse_kernels.lse_ops import row_column_lse
from divse_kernels.mining_ops import MAX_TOPN, hardest_negatives
from divse_kernels.ops import MAX_SIZE, smooth_chamfer, supports
from divse_kernels.pair_ops import score_pairs
from divse_kernels.rbf_ops import rbf_mean
from divse_kernels.score_ops import scores
from divse_kernels.search import search, search_blocks

__all__ = [
    "LONGEST",
    "MAX_SIZE",
    "MAX_TOPK",
    "MAX_TOPN",
    "certified_search",
    "hardest_negatives",
    "launches",
    "quantise",
    "rbf_mean",
    "row_column_lse",
    "score_candidates",
    "score_pairs",
    "scores",
    "search",
    "search_blocks",
    "smooth_chamfer",
    "supports",
]
