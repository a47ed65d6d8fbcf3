"""The smallest run of train.py that still has every part; shared by several test files."""

SETTINGS = {
    "data.name": "scenes",
    "data.options": ["pictures=16"],
    "image.width": 8,
    "image.size": 16,
    "text.word_dim": 8,
    "text.hidden": 8,
    "model.k": 2,
    "model.dim": 8,
    "model.blocks": 2,
    "model.heads": 2,
    "model.head_dim": 4,
    "model.dropout": 0.1,
    "train.batch_size": 4,
    "train.epochs": 3,
    "train.device": "cpu",
}


def arguments(**changes: object) -> list[str]:
    """Command line of the tiny run; `model__k=3` changes model.k."""
    settings = SETTINGS | {name.replace("__", "."): value for name, value in changes.items()}
    words: list[str] = []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(str(v).lower() if isinstance(v, bool) else str(v) for v in values)]
    return words
