"""A page: a figure laid out in inches from its upper left corner, under a title that explains it.

Everything is placed by measured sizes, so that no text is cut off or lies on another. At 100 pixels
an inch a page is as wide as a README shows it; PNGs hold twice that.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, MARGIN, DPI = 9.0, 0.3, 200
TITLE, BODY, SMALL = 14.0, 9.5, 8.5  # points
LEADING = 1.35
INK, GREY, LINE, PANEL, PAPER = "#1b1f24", "#57606a", "#d0d7de", "#f3f4f6", "#ffffff"
# Okabe and Ito's colours for every kind of sight, without yellow, which is too light on paper
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5D3A9B")
FORMATS, OTHER_FORMATS = ("png", "svg"), ("pdf", "jpg", "jpeg", "eps", "ps", "gif", "webp", "tif")
FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Arial Unicode MS", "Noto Sans")


class Page:
    """A figure of a given content height (inches) under a title and a note on how to read it."""

    def __init__(self, title: str, note: str, height: float, width: float = WIDTH) -> None:
        self.title, self.note, self.width = title, note, width
        inner = width - 2 * MARGIN
        titles, notes = wrapped(title, inner, TITLE, "bold"), wrapped(note, inner, BODY)
        head = len(titles) * line(TITLE) + len(notes) * line(BODY)
        self._top = MARGIN + head + 0.18
        self.height = self._top + height + MARGIN
        self.figure: Any = drawing().Figure(figsize=(width, self.height), facecolor=PAPER)
        below = self._lines(titles, MARGIN, MARGIN, TITLE, INK, "bold")
        self._lines(notes, MARGIN, below, BODY, GREY)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Bare axes at a place of the content."""
        bottom = self.height - self._top - top - height
        place = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        axes: Axes = self.figure.add_axes(place)
        axes.set_facecolor("none")
        return axes

    def text(
        self,
        left: float,
        top: float,
        words: str,
        width: float | None = None,
        size: float = SMALL,
        colour: str = INK,
        weight: str = "normal",
        most: int = 0,
    ) -> float:
        """Write words, wrapped to `width`, at most `most` lines; return where the next line goes.

        The y coordinate is the upper edge, seen from the upper edge of the content.
        """
        rows = [words] if width is None else wrapped(words, width, size, weight, most)
        return self._lines(rows, left, top + self._top, size, colour, weight) - self._top

    def picture(self, left: float, top: float, side: float, pixels: Any) -> Axes:
        """Show pixels (H, W, 3) within a square, its proportions kept."""
        high, wide = pixels.shape[:2]
        scale = side / max(high, wide)
        offset = (side - wide * scale) / 2
        axes = self.axes(left + offset, top, wide * scale, high * scale)
        axes.imshow(pixels, aspect="auto", interpolation="nearest" if high < 100 else "antialiased")
        axes.set_axis_off()
        return axes

    def _lines(
        self,
        rows: Sequence[str],
        left: float,
        top: float,
        size: float,
        colour: str,
        weight: str = "normal",
    ) -> float:
        for row in rows:
            self.figure.text(
                left / self.width,
                1 - (top + 0.8 * line(size)) / self.height,
                row,
                va="baseline",
                **font(size, weight),
                color=colour,
                parse_math=False,  # a caption may hold dollars
            )
            top += line(size)
        return top


def plain(axes: Axes, grid: str = "") -> None:
    """Axes of a chart: thin lines left and below, a light grid along `grid` (x, y or both)."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(LINE)
    axes.tick_params(color=LINE, labelcolor=GREY, labelsize=SMALL, length=3)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(True, axis=grid, color=LINE, linewidth=0.5, alpha=0.7)  # type: ignore[arg-type]


def save(page: Page, out: Path, formats: Sequence[str] = ()) -> list[Path]:
    """Write a page: in the format of its suffix, in `formats`, or as PNG and SVG."""
    suffix = out.suffix.lower().removeprefix(".")
    if suffix in OTHER_FORMATS:
        raise ValueError(f"out: got {out.name}, figures are written as {' or '.join(FORMATS)}")
    formats = formats or ([suffix] if suffix in FORMATS else FORMATS)
    wrong = [name for name in formats if name not in FORMATS]
    if wrong:
        raise ValueError(f"format: got {', '.join(wrong)}, expected {' or '.join(FORMATS)}")
    stem = out.with_suffix("") if suffix in FORMATS else out
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    with drawing().rc_context({"svg.hashsalt": "divse"}):  # the same figure, the same bytes
        for name in formats:
            path = stem.with_name(f"{stem.name}.{name}")
            metadata = {"Date": None} if name == "svg" else {"Software": None}
            page.figure.savefig(path, dpi=DPI, metadata=metadata)
            paths.append(path)
    return paths


def colours(count: int) -> list[str]:
    """So many colours that can be told apart, whatever one's sight."""
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    ramp = drawing().colormaps["viridis"]
    return [drawing().to_hex(ramp(0.95 * i / (count - 1))) for i in range(count)]


def ramp(count: int) -> list[str]:
    """Shades of one blue, from dark to light."""
    shades = drawing().colormaps["Blues"]
    steps = [0.95 - 0.7 * i / max(1, count - 1) for i in range(count)]
    return [drawing().to_hex(shades(step)) for step in steps]


def line(size: float) -> float:
    """Height of a line of text in inches."""
    return size * LEADING / 72


def font(size: float, weight: str = "normal") -> dict[str, Any]:
    """Keyword arguments of a text: fonts that are installed, one after the other."""
    return {"family": families(), "size": size, "weight": weight}


def text_width(words: str, size: float, weight: str = "normal") -> float:
    """Width of a text in inches."""
    paths = drawing()
    properties = paths.FontProperties(**font(size, weight))
    width, _, _ = paths.text_to_path.get_text_width_height_descent(words, properties, False)
    return 1.04 * float(width) / 72  # drawn, hinting makes it a little wider


def wrapped(
    words: str, width: float, size: float, weight: str = "normal", most: int = 0
) -> list[str]:
    """Break a text into lines of at most `width` inches; an ellipsis marks what is left out."""
    lines: list[str] = []
    row = ""
    for word in words.split():
        longer = f"{row} {word}".strip()
        if text_width(longer, size, weight) <= width:
            row = longer
            continue
        if row:
            lines.append(row)
        row = clipped(word, width, size, weight)
    lines += [row] if row else []
    if not most or len(lines) <= most:
        return lines
    return [*lines[: most - 1], clipped(f"{lines[most - 1]} …", width, size, weight, always=True)]


def clipped(
    words: str, width: float, size: float, weight: str = "normal", always: bool = False
) -> str:
    """Cut a text to `width` inches, with an ellipsis where it was longer."""
    if text_width(words, size, weight) <= width:
        return words
    words = words.removesuffix(" …") if always else words
    while words and text_width(words + "…", size, weight) > width:
        words = words[:-1]
    return words.rstrip() + "…"


@lru_cache(maxsize=1)
def families() -> list[str]:
    """Fonts of this machine that captions in many scripts need; the first is always there."""
    installed = set(drawing().fontManager.get_font_names())
    return [name for name in FONTS if name in installed]


class _Drawing:
    """The parts of matplotlib that pages use."""

    def __init__(self) -> None:
        import matplotlib
        from matplotlib.colors import to_hex
        from matplotlib.figure import Figure
        from matplotlib.font_manager import FontProperties, fontManager
        from matplotlib.textpath import text_to_path

        self.colormaps: Any = matplotlib.colormaps
        self.rc_context, self.to_hex, self.Figure = matplotlib.rc_context, to_hex, Figure
        self.FontProperties, self.fontManager = FontProperties, fontManager
        self.text_to_path: Any = text_to_path


@lru_cache(maxsize=1)
def drawing() -> Any:
    """Import matplotlib on first use, or say how to install it."""
    try:
        return _Drawing()
    except ImportError as error:
        raise ImportError(
            f'figures need matplotlib ({error}): pip install "divse[plots]"'
        ) from None
