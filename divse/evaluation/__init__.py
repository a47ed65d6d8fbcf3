"""Evaluation: retrieval metrics, spread of sets, and intervals for differences of models."""

from divse.evaluation.bootstrap import paired_bootstrap
from divse.evaluation.resampling import Interval
from divse.evaluation.retrieval import (
    Ranks,
    evaluate,
    evaluate_sets,
    map_at_r,
    ranks,
    recalls,
    set_ranks,
)
from divse.evaluation.seeds import mean_interval, seeds_interval
from divse.evaluation.variance import circular_variance, log_variance

__all__ = [
    "Interval",
    "Ranks",
    "circular_variance",
    "evaluate",
    "evaluate_sets",
    "log_variance",
    "map_at_r",
    "mean_interval",
    "paired_bootstrap",
    "ranks",
    "recalls",
    "seeds_interval",
    "set_ranks",
]
