"""A contact sheet: one row for each query, with the query at the left and its pictures in order.

Sizes are in pixels. Pillow is imported where it is used; its built-in TrueType font is enough.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from divse.cli import share_strip

if TYPE_CHECKING:
    from PIL.Image import Image

MARGIN, GAP = 32, 16
QUERY_WIDTH, TILE = 232, 176
SCORE_SIZE, CAPTION_SIZE, QUERY_SIZE = 15, 13, 19
CAPTION_LINES, QUERY_LINES, FOOT_LINES = 2, 7, 4
INK, GREY, LINE, PAPER, PANEL = "#1b1f24", "#6a737d", "#e3e6ea", "#ffffff", "#f5f6f8"
RIGHT, WRONG = "#2da44e", "#d0d5db"


@dataclass(frozen=True)
class Tile:
    """One result: its picture (a path, or None for a text), score and caption.

    `fits` draws a green frame (True) or a grey one (False) where the truth is known; `explanation`
    (of `HitExplanation.to_dict`) draws a strip of the elements that met.
    """

    caption: str
    score: float
    image: Any = None
    fits: bool | None = None
    explanation: dict[str, Any] | None = None


@dataclass(frozen=True)
class SheetRow:
    """One query, a text or a picture (`image`) or both, and its results, best first."""

    tiles: list[Tile]
    text: str = ""
    image: Any = None
    note: str = ""

    @property
    def elements(self) -> int:
        """Elements of the query, if its results are explained; else 0."""
        explained = [tile.explanation for tile in self.tiles if tile.explanation]
        return len(explained[0]["cosines"]) if explained else 0


@dataclass(frozen=True)
class ContactSheet:
    """Rows of queries under a title; `draw` gives the picture."""

    rows: list[SheetRow]
    title: str = ""
    _fonts: dict[int, Any] = field(default_factory=dict, repr=False)

    def save(self, path: str | Path) -> None:
        """Draw the sheet into a picture file."""
        self.draw().save(path)

    def draw(self) -> Image:
        """Draw the sheet."""
        from PIL import Image, ImageDraw

        if not self.rows:
            raise ValueError("a contact sheet needs at least one query")
        columns = max(1, *(len(row.tiles) for row in self.rows))
        width = 2 * MARGIN + QUERY_WIDTH + columns * (TILE + GAP)
        head = MARGIN + (44 if self.title else 0)
        footnote = self._footnote(width - 2 * MARGIN)
        foot = len(footnote) * (CAPTION_SIZE + 5)
        height = head + sum(self._row_height(row) for row in self.rows) + foot + MARGIN - GAP
        sheet = Image.new("RGB", (width, height), PAPER)
        pen = ImageDraw.Draw(sheet)
        if self.title:
            pen.text((MARGIN, MARGIN - 6), self.title, font=self._font(22), fill=INK)
        top = head
        for index, row in enumerate(self.rows):
            if index or self.title:
                pen.line([(MARGIN, top - GAP), (width - MARGIN, top - GAP)], fill=LINE)
            self._draw_query(sheet, pen, row, top)
            for column, tile in enumerate(row.tiles):
                left = MARGIN + QUERY_WIDTH + GAP + column * (TILE + GAP)
                self._draw_tile(sheet, pen, tile, (left, top), column + 1)
            top += self._row_height(row)
        for line in footnote:
            pen.text((MARGIN, top - GAP), line, font=self._font(CAPTION_SIZE), fill=GREY)
            top += CAPTION_SIZE + 5
        return sheet

    def _row_height(self, row: SheetRow) -> int:
        strip = share_strip.HEIGHT if row.elements else 0
        captions = CAPTION_LINES * (CAPTION_SIZE + 5)
        return TILE + 10 + strip + SCORE_SIZE + 6 + captions + 2 * GAP

    def _footnote(self, width: int) -> list[str]:
        """What the strips mean, in lines, if there are any."""
        if not any(row.elements for row in self.rows):
            return []
        return wrapped(share_strip.FOOTNOTE, self._font(CAPTION_SIZE), width, FOOT_LINES)

    def _draw_query(self, sheet: Image, pen: Any, row: SheetRow, top: int) -> None:
        if row.image is not None:
            sheet.paste(fitted(row.image, TILE), (MARGIN, top))
            top += TILE + 8
        size, most = (QUERY_SIZE, QUERY_LINES) if row.image is None else (CAPTION_SIZE, 2)
        font = self._font(size)
        for line in wrapped(row.text, font, QUERY_WIDTH - GAP, most):
            pen.text((MARGIN, top), line, font=font, fill=INK)
            top += size + 7
        if row.elements:
            corner, width = (MARGIN, top + 2), QUERY_WIDTH - GAP
            share_strip.draw_legend(pen, self._font(CAPTION_SIZE), corner, width, row.elements)
            top += CAPTION_SIZE + 9
        if row.note:
            pen.text((MARGIN, top + 2), row.note, font=self._font(CAPTION_SIZE), fill=GREY)

    def _draw_tile(
        self, sheet: Image, pen: Any, tile: Tile, corner: tuple[int, int], rank: int
    ) -> None:
        left, top = corner
        box = (left, top, left + TILE - 1, top + TILE - 1)
        caption = self._font(CAPTION_SIZE)
        if tile.image is None:
            pen.rectangle(box, fill=PANEL)
            for number, text in enumerate(wrapped(tile.caption, self._font(15), TILE - 24, 7)):
                pen.text((left + 12, top + 12 + 22 * number), text, font=self._font(15), fill=INK)
        else:
            sheet.paste(fitted(tile.image, TILE), corner)
        frame = LINE if tile.fits is None else RIGHT if tile.fits else WRONG
        pen.rectangle(box, outline=frame, width=4 if tile.fits else 1)
        top += TILE + 10
        if tile.explanation:
            font = self._font(share_strip.TEXT)
            share_strip.draw_strip(pen, font, (left, top), TILE, tile.explanation)
            top += share_strip.HEIGHT
        score = self._font(SCORE_SIZE)
        pen.text((left, top), f"{tile.score:.3f}", font=score, fill=INK)
        pen.text((left + TILE, top + 2), f"#{rank}", font=caption, fill=GREY, anchor="ra")
        if tile.image is not None:
            top += SCORE_SIZE + 6
            for line in wrapped(tile.caption, caption, TILE, CAPTION_LINES):
                pen.text((left, top), line, font=caption, fill=GREY)
                top += CAPTION_SIZE + 5

    def _font(self, size: int) -> Any:
        from PIL import ImageFont

        if size not in self._fonts:
            self._fonts[size] = ImageFont.load_default(size=size)
        return self._fonts[size]


def fitted(picture: Any, size: int) -> Image:
    """Return the picture (a path, an array or a PIL image) in the middle of a square of `size`.

    Transparent parts become white; a picture that cannot be read becomes a panel that says so.
    """
    from PIL import Image, ImageDraw, ImageOps

    square = Image.new("RGB", (size, size), PANEL)
    try:
        with _opened(picture) as image:
            pixels = ImageOps.exif_transpose(image).convert("RGBA")
    except OSError:  # missing, cut short, or no picture at all
        ImageDraw.Draw(square).text((size // 2, size // 2), "no picture", fill=GREY, anchor="mm")
        return square
    white = Image.new("RGBA", pixels.size, PAPER)
    whole = Image.alpha_composite(white, pixels).convert("RGB")
    inside = ImageOps.contain(whole, (size, size), Image.Resampling.LANCZOS)
    square.paste(inside, ((size - inside.width) // 2, (size - inside.height) // 2))
    return square


def _opened(picture: Any) -> Image:
    from PIL import Image

    if isinstance(picture, Image.Image):
        return picture.copy()
    if isinstance(picture, str | Path):
        return Image.open(picture)
    return Image.fromarray(picture)


def wrapped(text: str, font: Any, width: int, most: int) -> list[str]:
    """Break a text into at most `most` lines of `width` pixels; an ellipsis marks what is cut."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if font.getlength(longer) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        while font.getlength(word) > width:  # a word longer than the line, such as a path
            cut = next(n for n in range(len(word), 0, -1) if font.getlength(word[:n]) <= width)
            lines.append(word[:cut])
            word = word[cut:]
        line = word
    if line:
        lines.append(line)
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and font.getlength(last + "…") > width:
        last = last[:-1]
    return [*lines[: most - 1], last.rstrip() + "…"]
