"""Figures of trained models and of tables of runs, as PNG and SVG: `divse-plot`, docs/figures.md.

One module a figure: a function takes numbers and gives a Page, which `save` writes; `questions` and
`measured` get the numbers from trained runs. matplotlib is imported where it is used (the extra
`plots`), and pyplot never is: no state, no display.
"""

from divse.plots.page import Page, save

__all__ = ["Page", "save"]
