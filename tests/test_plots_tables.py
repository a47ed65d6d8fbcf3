"""Figures of tables of runs: every number that is drawn is one of the table's."""

import csv
import json
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from divse.evaluation import seeds_interval
from divse.plots import save
from divse.plots.ablation import ABOVE, BELOW, OPEN, ablation_page, lines_of
from divse.plots.labels import overlap, place_labels
from divse.plots.page import DPI, MARGIN, PALETTE, Page, colours, text_width, wrapped
from divse.plots.supervision import Shares, effective_elements, shares_of, supervision_page
from divse.plots.table import (
    by_group,
    configurations,
    find_reference,
    group_of,
    label_in,
    mean_interval,
    read_runs,
)
from divse.plots.variance import variance_page

BASE = {"similarity": "smooth_chamfer", "head": "set_prediction", "k": "4", "alpha": "16"}
CONFIGS = {
    "smooth_chamfer": ({}, 400, -1.0),
    "mil": ({"similarity": "mil", "alpha": ""}, 380, -2.0),
    "pie_net": ({"head": "pie_net"}, 390, -4.0),
    "k1": ({"head": "pooling", "k": "1"}, 370, None),
    "k2": ({"k": "2"}, 399, -1.2),
    "alpha8": ({"alpha": "8"}, 420, -1.5),
    "alpha64": ({"alpha": "64"}, 400, -0.9),
}
NOISE = (0.0, 1.5, -1.0)


def row(config, seed, data="scenes"):
    changes, rsum, spread = CONFIGS[config]
    shares = [0.7, 0.2, 0.06, 0.04] if config == "mil" else [0.4, 0.3, 0.2, 0.1]
    found = {"data": data, "config": config, "seed": str(seed), **BASE, **changes}
    found["rsum"] = str(rsum + NOISE[seed] * (1 if config in ("mil", "alpha8") else -2))
    found["log_var_images"] = "" if spread is None else str(spread + 0.1 * NOISE[seed])
    if config in ("smooth_chamfer", "mil"):
        for side in ("images", "texts"):
            found |= {f"share_{side}_{i}": str(s) for i, s in enumerate(shares, 1)}
    return found


@pytest.fixture
def rows():
    return [row(config, seed) for seed in range(3) for config in CONFIGS]


@pytest.fixture
def table(tmp_path, rows):
    columns = list(dict.fromkeys(name for one in rows for name in one))
    with (tmp_path / "ablation.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path / "ablation.csv"


def texts(page):
    """Every text of a page that is drawn."""
    found = list(page.figure.texts)
    for axes in page.figure.axes:
        if axes.axison:
            found += [*axes.texts, axes.xaxis.label, axes.yaxis.label]
            for axis in (axes.xaxis, axes.yaxis):
                low, high = sorted(axis.get_view_interval())
                found += [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
    return [text for text in found if text.get_text().strip()]


def words(page):
    return [text.get_text() for text in texts(page)]


def boxes(page):
    """(words, extent in inches) of every text of a page."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(page.figure)
    canvas.draw()
    renderer, scale = canvas.get_renderer(), page.figure.dpi
    return [(t.get_text(), t.get_window_extent(renderer).extents / scale) for t in texts(page)]


def assert_legible(page):
    """No text is cut off by the edge, none lies on another."""
    found = boxes(page)
    for said, (left, bottom, right, top) in found:
        assert left >= 0 and bottom >= 0, said
        assert right <= page.width and top <= page.height, said
    for i, (a, box) in enumerate(found):
        for b, other in found[:i]:
            shared = overlap(tuple(box), tuple(other))
            assert shared < 0.1 * min(np.prod(box[2:] - box[:2]), np.prod(other[2:] - other[:2])), (
                a,
                b,
            )


def test_groups_and_names_come_from_what_is_varied(rows):
    some = configurations(rows, "rsum")
    base = find_reference(some)
    assert base.name == "smooth_chamfer"
    groups = by_group(some, base)
    names = {group: [label_in(one, group) for one in ones] for group, ones in groups.items()}
    assert names["k"] == ["K = 1", "K = 2", "K = 4"]
    assert names["alpha"] == ["α = 8", "α = 16", "α = 64"]
    assert set(names["similarity"]) == {"MIL", "Smooth-Chamfer"}
    assert set(names["head"]) == {"PIE-Net", "set prediction"}
    assert group_of(some[3], base) == "k"  # its head is another, but K is what it is about


def test_a_column_group_decides(rows):
    for one in rows:
        one["group"] = "mine"
    some = configurations(rows, "rsum")
    assert list(by_group(some, find_reference(some))) == ["mine"]


def test_intervals_are_those_of_the_evaluation():
    a, b = [1.0, 2.5, 2.0], [0.0, 0.0, 0.0]
    assert mean_interval(np.array([*a, math.nan])) == pytest.approx(seeds_interval(a, b))
    assert mean_interval(np.array([3.0])) == (3.0, 3.0, 3.0)


def test_bars_are_paired_differences(rows):
    lines = lines_of(configurations(rows, "rsum"), "rsum")
    mil = next(item for item in lines["similarity"] if item.name == "MIL")
    gaps = [-20 + 3 * noise for noise in NOISE]
    assert mil.differences == pytest.approx(gaps)
    assert tuple(mil.interval) == pytest.approx(tuple(seeds_interval(gaps, [0, 0, 0])))
    assert mil.hue == BELOW
    hues = {item.name: item.hue for item in lines["alpha"]}
    assert hues == {"α = 8": ABOVE, "α = 16": OPEN, "α = 64": OPEN}
    assert next(item for item in lines["k"] if item.reference).interval is None


def test_the_ablation_shows_every_configuration(rows):
    page = ablation_page([*rows, *(one | {"data": "photos"} for one in rows)])
    said = words(page)
    for name in ("scenes", "photos", "MIL", "PIE-Net", "K = 1", "α = 64", "difference in RSUM"):
        assert name in said, name
    axes = page.figure.axes[0]
    widths = sorted(bar.get_width() for bar in axes.patches)
    assert widths[0] == pytest.approx(-30.0, abs=1) and widths[-1] == pytest.approx(20, abs=2)
    assert len(axes.patches) == len(CONFIGS) - 1 and len(page.figure.axes) == 2
    assert_legible(page)


def test_one_seed_has_no_interval(rows):
    page = ablation_page([one for one in rows if one["seed"] == "0"])
    assert "−20.0 (one seed)" in words(page)
    lines = lines_of(configurations(rows[: len(CONFIGS)], "rsum"), "rsum")
    assert {item.hue for ones in lines.values() for item in ones} == {OPEN}


def test_seeds_that_the_reference_lacks_are_not_compared(rows):
    kept = [one for one in rows if one["config"] == "mil" or one["seed"] == "9"]
    kept += [row("smooth_chamfer", 0) | {"seed": "7"}]
    lines = lines_of(configurations(kept, "rsum"), "rsum")
    assert all(not item.differences for item in lines["similarity"])
    assert "no seed in common" in words(ablation_page(kept))


def test_variance_draws_every_run_and_mean(rows):
    page = variance_page(rows)
    axes = page.figure.axes[0]
    drawn = np.concatenate([c.get_offsets() for c in axes.collections if len(c.get_offsets()) == 3])
    expected = [
        (float(one["log_var_images"]), float(one["rsum"])) for one in rows if one["log_var_images"]
    ]
    np.testing.assert_allclose(sorted(map(tuple, drawn)), sorted(expected))
    said = words(page)
    assert {"MIL", "PIE-Net", "K = 2", "α = 8", "reference"} <= set(said)
    assert "not shown: k1" in " ".join(said) and "log Var of the pictures' sets" in said
    assert_legible(page)


def test_labels_of_a_crowd_keep_apart():
    page = Page("A crowd", "of points", 3.0)
    axes = page.axes(0.5, 0, 8, 2.5)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    points = [(0.5 + 0.01 * i, 0.5 + 0.01 * (i % 3)) for i in range(12)]
    placed = place_labels(page, axes, points, [f"label {i}" for i in range(12)], [])
    assert all(overlap(a, b) == 0 for i, a in enumerate(placed) for b in placed[:i])
    assert_legible(page)


def test_shares_of_a_table(rows):
    shares = {one.name: one for one in shares_of(rows)}
    assert list(shares) == ["MIL", "Smooth-Chamfer"]  # from sparse to dense
    np.testing.assert_allclose(shares["MIL"].images, [[0.7, 0.2, 0.06, 0.04]] * 3)
    with pytest.raises(ValueError, match="expected one of scenes"):
        shares_of(rows, data="photos")
    with pytest.raises(ValueError, match="expected one of scenes, photos"):
        shares_of([*rows, *(one | {"data": "photos"} for one in rows)])


def test_supervision_bars_add_up():
    page = supervision_page(
        [
            Shares("MIL", np.array([[0.9, 0.1]]), np.array([[1.0, 0.0]])),
            Shares("MP", np.array([[0.5, 0.5]]), np.array([[0.6, 0.4]])),
        ],
        "Somewhere.",
    )
    widths = [bar.get_width() for bar in page.figure.axes[0].patches]
    assert widths == pytest.approx([90, 10, 50, 50])
    said = words(page)
    assert "2.0 of 2" in said and "1.0 of 2" in said and "90" in said
    assert_legible(page)


def test_effective_elements():
    assert effective_elements(np.full(4, 0.25)) == pytest.approx(4)
    assert effective_elements(np.array([1.0, 0, 0])) == pytest.approx(1)


def test_sets_of_different_sizes_do_not_mix():
    shares = [Shares("a", np.ones((1, 2)) / 2, np.ones((1, 2)) / 2)]
    shares.append(Shares("b", np.ones((1, 3)) / 3, np.ones((1, 3)) / 3))
    with pytest.raises(ValueError, match="different sizes"):
        supervision_page(shares, "")


def test_csv_and_run_folders(tmp_path, table):
    assert len(read_runs([table])) == 3 * len(CONFIGS)
    settings = {"loss": {"similarity": "mil"}, "model": {"k": 2}, "train": {"seed": 5}}
    for seed in (0, 1):
        folder = tmp_path / "runs" / f"mine-{seed}"
        folder.mkdir(parents=True)
        (folder / "settings.json").write_text(json.dumps(settings))
        (folder / "test.json").write_text(json.dumps({"rsum": 300.0 + seed}))
    runs = read_runs([tmp_path / "runs"])
    assert [run["rsum"] for run in runs] == [300, 301]
    assert {(run["config"], run["similarity"], run["k"], run["alpha"]) for run in runs} == {
        ("mine", "mil", 2, None)
    }
    assert read_runs([tmp_path / "runs" / "mine-1"]) == runs[1:]


def test_seed_zero_is_a_seed_wherever_it_stands():
    rows = [{"config": "a", "seed": seed, "rsum": 10 + seed} for seed in (1, 0)]
    assert configurations(rows, "rsum")[0].seeds("rsum") == {"1": 11, "0": 10}
    rows = [{"config": "a", "seed": "", "rsum": 3}, {"config": "a", "rsum": 4}]
    assert configurations(rows, "rsum")[0].seeds("rsum") == {"0": 3, "1": 4}


def test_runs_on_different_worlds_are_different_data(tmp_path):
    for name, options in (("a", {"pictures": 60}), ("b", {"pictures": 60, "seed": 1})):
        (tmp_path / name).mkdir()
        settings = {"data": {"name": "scenes", "options": options}}
        (tmp_path / name / "settings.json").write_text(json.dumps(settings))
        (tmp_path / name / "test.json").write_text(json.dumps({"rsum": 300.0}))
    named = [run["data"] for run in read_runs([tmp_path])]
    assert named == ["scenes-v1+pictures=60", "scenes-v1+pictures=60+seed=1"]


def test_tables_that_cannot_serve(tmp_path, rows, table):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty.csv").write_text("config\n")
    with pytest.raises(ValueError, match="expected a column config"):
        read_runs([tmp_path / "other.csv"])
    with pytest.raises(ValueError, match="no runs"):
        read_runs([tmp_path / "empty.csv"])
    with pytest.raises(FileNotFoundError, match=r"test\.json"):
        read_runs([tmp_path])
    with pytest.raises(ValueError, match="no run has a number foo"):
        ablation_page(rows, "foo")
    with pytest.raises(ValueError, match="expected one of smooth_chamfer"):
        ablation_page(rows, reference="foo")
    with pytest.raises(ValueError, match="expected a number"):
        ablation_page([rows[0] | {"rsum": "many"}])
    with pytest.raises(ValueError, match="images or texts"):
        variance_page(rows, side="both")


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
    import sys

    from divse.plots.page import drawing

    drawing.cache_clear()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"divse\[plots\]"):
        Page("a", "b", 1)
    drawing.cache_clear()
