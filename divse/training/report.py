"""What a run leaves for people: the table of its test, and a gallery of the test pictures."""

from __future__ import annotations

from pathlib import Path

from divse.data import ImageTextData
from divse.encoder import DivSE
from divse.sets import EmbeddingSets

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


def write_gallery(
    path: Path, sets: EmbeddingSets, data: ImageTextData, encoder: DivSE, model: Path
) -> None:
    """Write the sets of a split's pictures as a gallery that divse-search opens."""
    from divse.search.gallery import Gallery

    captions = [" | ".join(data.captions_of(i)) for i in range(len(data))]
    Gallery.create(
        path,
        sets,
        ids=data.image_ids,
        columns={"captions": captions},
        metadata={
            "model": str(model.resolve()),
            "fingerprint": encoder.fingerprint,
            "similarity": encoder.similarity,
        },
        overwrite=True,
    )
