"""What bench/ablation.py trains: configurations, what is compared with what, and the checks."""

from __future__ import annotations

PRESETS = {"scenes": "scenes", "openmoji": "captions"}
EPOCHS = {"scenes": 20, "openmoji": 10}  # 2 to 4 minutes a run on one core of a CPU
REFERENCE = "smooth_chamfer"
CONFIGS: dict[str, list[str]] = {
    REFERENCE: [],
    "chamfer": ["--loss.similarity", "chamfer"],
    "mil": ["--loss.similarity", "mil"],
    "mp": ["--loss.similarity", "mp"],
    "pie_net": ["--model.head", "pie_net"],
    "transformer": ["--model.head", "transformer"],
    "k1": ["--model.head", "pooling", "--model.k", "1"],
    "k2": ["--model.k", "2"],
    "k6": ["--model.k", "6"],
    "alpha4": ["--loss.alpha", "4"],
    "alpha8": ["--loss.alpha", "8"],
    "alpha32": ["--loss.alpha", "32"],
    "alpha64": ["--loss.alpha", "64"],
}
# What is compared with what, and the RSUM that the paper reports (DivE, table 3, Flickr30K).
GROUPS: dict[str, dict[str, float | None]] = {
    "similarity": {"mp": 490.5, "mil": 491.7, "chamfer": 499.6, REFERENCE: 500.8},
    "head": {"pie_net": 483.3, "transformer": 496.1, REFERENCE: 500.8},
    "k": {"k1": 492.6, "k2": 495.5, REFERENCE: 500.8, "k6": 499.3},
    "alpha": {"alpha4": None, "alpha8": None, REFERENCE: None, "alpha32": None, "alpha64": None},
}
# The checks: some of the models trained otherwise. The paper's loss is the hinge of the hardest
# negative with a margin of 0.2, from the first step. Where the hardest negatives are none it may
# stay at twice its margin, all scores equal; so there is also one that InfoNCE brings on its way.
CHECKED = {REFERENCE: 500.8, "chamfer": 499.6, "pie_net": 483.3}
TRIPLET = ["--loss.name", "triplet", "--loss.margin", "0.2"]
TRAININGS: dict[str, list[str]] = {
    "triplet": TRIPLET,
    "warm_triplet": TRIPLET,  # after half of the epochs
    "2x_epochs": [],
}
# How an element reads its input, in steps from set prediction to PIE-Net: without competition
# (the Transformer of the ablation), by a single block, by attention pooling (as K = 1 has it: each
# element is one weighted mean; no block and no slot is left in it).
READINGS: dict[str, list[str]] = {
    REFERENCE: [],
    "transformer": CONFIGS["transformer"],
    "attention_pooling": ["--model.head", "pooling"],
    "pie_net": CONFIGS["pie_net"],
}
CHECKS: dict[str, list[str]] = {
    **{name: words for name, words in READINGS.items() if name not in CONFIGS},
    **{
        f"{config}_{training}": [*CONFIGS[config], *words]
        for training, words in TRAININGS.items()
        for config in CHECKED
    },
}
EVERY = CONFIGS | CHECKS


def epochs_of(data: str, config: str) -> int:
    """Epochs that a configuration is trained for, unless it is said otherwise."""
    return EPOCHS[data] * (2 if config.endswith("_2x_epochs") else 1)


def words_of(data: str, config: str, epochs: int | None = None) -> list[str]:
    """Arguments of train.py that make a configuration, for its own number of epochs or another."""
    epochs = epochs or epochs_of(data, config)
    words = [*EVERY[config], "--epochs", str(epochs)]
    if config.endswith("_warm_triplet"):
        words += ["--loss.warmup_epochs", str(epochs // 2)]
    return words
