"""A table of runs for the tests of figures, and what a page says and where."""

import numpy as np

from divse.plots.labels import overlap

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
