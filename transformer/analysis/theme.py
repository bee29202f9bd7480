"""How the pictures of a report look: a light and a dark theme, and who has which colour.

Colours: Okabe & Ito's palette, told apart with any colour vision, lightened for the dark version;
numeric variants take an ordered scale.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from transformer.analysis.grid import grid
from transformer.analysis.results import Results


@dataclass(frozen=True)
class Theme:
  paper: str
  ink: str
  faint: str  # axes, ticks, reference lines
  grid: str
  hues: tuple[str, ...]  # for variants; the baseline is drawn in ink
  scale: tuple[float, float]  # the stretch of viridis that can be read on this paper
  verdicts: dict[str, str]


LIGHT = Theme(
  '#ffffff', '#1a1d21', '#5f6770', '#e6e8eb',
  ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#b58900', '#56b4e9', '#7b5ea7', '#8c6d46'),
  (0.0, 0.85),
  {'better': '#0072b2', 'worse': '#d55e00', 'tie': '#767d86',
   'void': '#767d86', 'too few seeds': '#767d86'},
)  # fmt: skip
DARK = Theme(
  '#16191d', '#eceff2', '#a2aab3', '#2b3036',
  ('#4ba3de', '#f08a3c', '#2cc295', '#e39cc4', '#e3c04b', '#9ad3f5', '#b39ddb', '#c8a47e'),
  (0.36, 1.0),
  {'better': '#4ba3de', 'worse': '#f08a3c', 'tie': '#a2aab3',
   'void': '#a2aab3', 'too few seeds': '#a2aab3'},
)  # fmt: skip


@dataclass(frozen=True)
class Plot:
  """One picture: file name without ending, caption, both versions as PNG.

  section: of the report where it stands; '': among the results.
  """

  name: str
  caption: str
  light: bytes
  dark: bytes
  section: str = ''


@dataclass(frozen=True)
class Look:
  """Of a line. dash: as matplotlib takes it; solid until the colours are used up."""

  colour: str
  dash: str | tuple = '-'


_DASHES = ('-', (0, (4, 1.6)), (0, (1.2, 1.4)), (0, (5, 1.4, 1.2, 1.4)))


def both(name: str, caption: str, draw: Callable, results: Results, section: str = '') -> Plot:
  """A picture by draw(figure, results, theme), in both themes."""
  return Plot(name, caption, *(_render(draw, results, theme) for theme in (LIGHT, DARK)), section)


def _render(draw, results: Results, theme: Theme) -> bytes:
  import matplotlib as mpl
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  with mpl.rc_context(_style(theme)):
    figure = Figure(layout='constrained')
    FigureCanvasAgg(figure)
    draw(figure, results, theme)
    out = io.BytesIO()
    figure.savefig(out, format='png', dpi=180)
  return out.getvalue()


def _style(theme: Theme) -> dict:
  return {
    'font.family': 'sans-serif', 'font.sans-serif': ['DejaVu Sans'], 'font.size': 10,
    'axes.titlesize': 11.5, 'axes.titlelocation': 'left', 'axes.titleweight': 'bold',
    'axes.titlepad': 10, 'axes.labelsize': 10, 'axes.edgecolor': theme.faint,
    'axes.labelcolor': theme.ink, 'axes.titlecolor': theme.ink, 'axes.facecolor': theme.paper,
    'axes.spines.top': False, 'axes.spines.right': False, 'axes.linewidth': 0.8,
    'axes.grid': True, 'axes.axisbelow': True, 'axes.unicode_minus': True,
    'grid.color': theme.grid, 'grid.linewidth': 0.8, 'figure.facecolor': theme.paper,
    'text.color': theme.ink, 'xtick.color': theme.faint, 'ytick.color': theme.faint,
    'xtick.labelcolor': theme.ink, 'ytick.labelcolor': theme.ink, 'xtick.major.size': 3,
    'ytick.major.size': 0, 'lines.solid_capstyle': 'round',
  }  # fmt: skip


def looks(results: Results, theme: Theme) -> dict[str, Look]:
  """Variant -> look; the baseline in ink, numbers along an ordered scale.

  In a grid of two settings all variants of one line look alike.
  """
  if len(results.variants) == 1:
    return {results.variants[0].name: Look(theme.hues[0])}
  if results.numeric:
    return _ordered([v.name for v in results.ranked], theme)
  g = grid(results)
  if not g:
    return _told_apart([v.name for v in results.variants], results.baseline, theme)
  line_of = {v.name: line.name for line in g.lines for _, v in line.points}
  base = line_of.get(results.baseline, '')
  lines = _told_apart([line.name for line in g.lines], base, theme)
  return {name: lines[line] for name, line in line_of.items()}


def _ordered(names: list[str], theme: Theme) -> dict[str, Look]:
  from matplotlib import colormaps
  from matplotlib.colors import to_hex

  places = np.linspace(*theme.scale, len(names))
  return {n: Look(to_hex(colormaps['viridis'](p))) for n, p in zip(names, places, strict=True)}


def _told_apart(names: list[str], base: str, theme: Theme) -> dict[str, Look]:
  found, many = {base: Look(theme.ink)}, len(theme.hues)
  for i, name in enumerate(n for n in names if n != base):
    found[name] = Look(theme.hues[i % many], _DASHES[i // many % len(_DASHES)])
  return found
