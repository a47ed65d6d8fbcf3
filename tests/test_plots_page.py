"""Pages: labels, wrapping, colours, and the files that are written."""

import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image
from plot_cases import assert_legible, boxes

from divse.plots import save
from divse.plots.labels import APART, overlap, place_labels
from divse.plots.page import DPI, MARGIN, PALETTE, Page, colours, drawing, text_width, wrapped
from divse.plots.supervision import Shares, supervision_page


def test_labels_of_a_crowd_keep_apart():
    page = Page("A crowd", "of points", 3.0)
    axes = page.axes(0.5, 0, 8, 2.5)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    points = [(0.5 + 0.01 * i, 0.5 + 0.01 * (i % 3)) for i in range(12)]
    placed = place_labels(page, axes, points, [f"label {i}" for i in range(12)], [])
    assert all(overlap(a, b) == 0 for i, a in enumerate(placed) for b in placed[:i])
    level = [(a, b) for a in placed for b in placed if min(a[3], b[3]) > max(a[1], b[1])]
    beside = [b[0] - a[2] for a, b in level if b[0] > a[2]]
    assert beside and min(beside) > APART * 0.99
    assert_legible(page)


def test_files_are_valid_and_repeat(tmp_path):
    page = supervision_page(
        [Shares("x", np.ones((1, 2)) / 2, np.ones((1, 2)) / 2)], "A $cheap test$."
    )
    png, svg = save(page, tmp_path / "deep" / "figure")
    with Image.open(png) as image:
        assert image.size == pytest.approx((page.width * DPI, page.height * DPI), abs=1)
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert ET.parse(svg).getroot().tag.endswith("svg")
    before = svg.read_bytes()
    assert save(page, tmp_path / "deep" / "figure.svg") == [svg] and svg.read_bytes() == before
    assert save(page, tmp_path / "K=0.5", ["png"]) == [tmp_path / "K=0.5.png"]
    for out, formats in (("a.pdf", []), ("a", ["jpg"])):
        with pytest.raises(ValueError, match="png or svg"):
            save(page, tmp_path / out, formats)


def test_colours_can_be_told_apart():
    for count in (1, 4, len(PALETTE), 12):
        assert len(set(colours(count))) == count
    for i, a in enumerate(PALETTE):  # luminance or hue differs clearly, for every kind of sight
        for b in PALETTE[:i]:
            rgb = [np.array([int(c[j : j + 2], 16) for j in (1, 3, 5)]) for c in (a, b)]
            red_green_blind = [np.array([0.625 * c[0] + 0.375 * c[1], c[2]]) for c in rgb]
            assert np.abs(red_green_blind[0] - red_green_blind[1]).max() > 20, (a, b)


def test_text_is_wrapped_by_measure():
    text = "a large striped star above an extraordinarilylongwordwithoutanybreak"
    for width in (0.8, 1.5, 3.0):
        lines = wrapped(text, width, 9)
        assert all(text_width(line, 9) <= width for line in lines)
    assert wrapped(text, 1.0, 9, most=2)[-1].endswith("…")
    assert wrapped("short", 3, 9, most=2) == ["short"]
    page = Page("A title that is far too long for one line, " * 4, "A note. " * 60, 0.5)
    assert_legible(page)
    assert all(box[2] <= page.width - MARGIN + 0.02 for _, box in boxes(page))


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    drawing.cache_clear()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"divse\[plots\]"):
        Page("a", "b", 1)
    drawing.cache_clear()
