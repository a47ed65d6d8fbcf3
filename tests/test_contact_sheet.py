"""The contact sheet: everything is on it, inside the margins, and a bad picture spoils nothing."""

import numpy as np
import pytest
from gallery_cases import sets
from PIL import Image, ImageColor, ImageFont

from divse.cli.contact_sheet import (
    MARGIN,
    PANEL,
    TILE,
    ContactSheet,
    SheetRow,
    Tile,
    fitted,
    wrapped,
)
from divse.cli.share_strip import BAR, COLOURS
from divse.search import explain_hits

RED = np.full((20, 40, 3), (255, 0, 0), dtype=np.uint8)


def test_size_grows_with_rows_and_columns():
    def size(rows, columns):
        return ContactSheet([SheetRow([Tile("a", 0.5, RED)] * columns)] * rows).draw().size

    (w1, h1), (w2, h2), (w3, h3) = size(1, 1), size(1, 4), size(3, 1)
    assert w2 > w1 == w3 and h3 > h1 == h2


def test_margins_stay_white():
    tiles = [Tile("a caption " * 20, -0.123, RED, fits=bool(i % 2)) for i in range(3)]
    row = SheetRow(tiles, text="averyverylongword" * 9, note="exact")
    sheet = np.asarray(ContactSheet([row, SheetRow(tiles, image=RED)], title="Found").draw())
    edge = MARGIN - 10
    for strip in (sheet[:edge], sheet[-edge:], sheet[:, :edge], sheet[:, -edge:]):
        assert (strip == 255).all()
    assert (sheet == (255, 0, 0)).all(-1).sum() > 7 * TILE * TILE / 3


def test_rows_of_texts_and_of_few_results():
    rows = [
        SheetRow([Tile("two stars", 0.3)] * 3, text="q"),
        SheetRow([Tile("one", 0.2)], text="r"),
    ]
    assert ContactSheet(rows).draw().size == ContactSheet(rows).draw().size
    with pytest.raises(ValueError, match="at least one query"):
        ContactSheet([]).draw()


def test_pictures_are_fitted_whole(tmp_path):
    square = np.asarray(fitted(RED, 80))
    assert square.shape == (80, 80, 3)
    assert (square[40] == (255, 0, 0)).all() and (square[5] != (255, 0, 0)).any()
    clear = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    assert (np.asarray(fitted(clear, 20)) == 255).all()
    Image.fromarray(RED).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "no.png").write_text("no picture")
    for name in ("cut.png", "no.png", "missing.png"):
        assert fitted(tmp_path / name, 60).getpixel((1, 1)) == Image.new(
            "RGB", (1, 1), PANEL
        ).getpixel((0, 0))


@pytest.mark.parametrize("text", ["", "word", "several words of one line", "x" * 90, "a " * 90])
@pytest.mark.parametrize("most", [1, 2, 7])
def test_wrapped_lines_fit(text, most):
    font = ImageFont.load_default(size=14)
    lines = wrapped(text, font, 120, most)
    assert len(lines) <= most and all(font.getlength(line) <= 120 for line in lines)
    if not lines or not lines[-1].endswith("…"):
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def explained(k, size, similarity="smooth_chamfer"):
    queries, gallery = sets(1, k, 16, seed=1), sets(1, size, 16, seed=2)
    return explain_hits(queries, gallery, np.zeros((1, 1), int), similarity)[0][0].to_dict()


def pixels(sheet, colour):
    """(height, width) bool: where a drawing has exactly this colour."""
    return (np.asarray(sheet) == ImageColor.getrgb(colour)).all(-1)


@pytest.mark.parametrize("similarity", ["smooth_chamfer", "chamfer", "mil"])
def test_strips_are_as_long_as_the_shares(similarity):
    why = explained(4, 3, similarity)
    sheet = ContactSheet([SheetRow([Tile("a", 0.5, RED, explanation=why)], text="q")]).draw()
    below = np.asarray(sheet)[MARGIN + TILE + 10 :]  # the legend of colours is above
    for match in why["matches"]:
        strong = pixels(below, COLOURS[match["query"]])
        expected = match["share"] * TILE
        assert abs(strong.any(0).sum() - expected) <= 3 and strong.sum() <= (expected + 1) * BAR


def test_strips_stay_inside_the_margins_whatever_the_sizes():
    rows = [
        SheetRow([Tile("a", 0.5, RED, explanation=explained(k, 5))] * 2, text="q")
        for k in (1, 2, 40)
    ]
    sheet = np.asarray(ContactSheet([*rows, SheetRow([Tile("b", 0.1)], text="r")]).draw())
    edge = MARGIN - 10
    for strip in (sheet[:edge], sheet[-edge:], sheet[:, :edge], sheet[:, -edge:]):
        assert (strip == 255).all()
    plain = ContactSheet([SheetRow([Tile("a", 0.5, RED)] * 2, text="q")]).draw()
    assert ContactSheet(rows[:1]).draw().height > plain.height
