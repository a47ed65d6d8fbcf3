"""What a run leaves for people: the table of its test, and what its gallery tells of a picture."""

from __future__ import annotations

from divse.data import ImageTextData

ROWS = (("image to text", "i2t"), ("text to image", "t2i"))


def table(figures: dict[str, float], data: ImageTextData) -> str:
    """Test figures as text."""
    truth = "all fitting pairs" if data.relevance is not None else "the source pairs"
    lines = [
        f"{data.name}/{data.split}: {len(data)} pictures, {len(data.captions)} captions, "
        f"against {truth}",
        f"{'':15}{'R@1':>7}{'R@5':>7}{'R@10':>7}",
    ]
    for title, way in ROWS:
        lines.append(f"{title:15}" + "".join(f"{figures[f'{way}_r{k}']:7.1f}" for k in (1, 5, 10)))
    lines.append(
        f"RSUM {figures['rsum']:.1f}   log Var {figures['log_var_images']:.2f} (pictures) "
        f"{figures['log_var_texts']:.2f} (captions)"
    )
    return "\n".join(lines)


def gallery_columns(data: ImageTextData) -> dict[str, list[str]]:
    """What a gallery of a split's pictures tells of each: its captions, and its file if any."""
    columns = {"caption": [" | ".join(data.captions_of(i)) for i in range(len(data))]}
    if data.image_paths is not None:
        columns["path"] = [str(path.resolve()) for path in data.image_paths]
    return columns
