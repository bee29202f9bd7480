"""The load of each expert over training, as a picture: layers and experts down, steps across."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from transformer.analysis.curves import MOST
from transformer.analysis.grid import selected
from transformer.analysis.results import Cell, Results
from transformer.analysis.routing import TRAINING, experts, measured
from transformer.analysis.theme import Theme

_LOADS = 6  # of so many variants
_TIMES = 120  # columns
_OCTAVES = 2  # to either side of the even share, which colours tell apart


@dataclass(frozen=True)
class Load:
  """Of one cell: steps, and relative_RT, each expert's load over the mean one, by layer."""

  label: str
  seed: int
  steps: list[int]
  layers: dict[int, int]  # layer -> experts
  relative_RT: np.ndarray


def loads(results: Results) -> list[Load]:
  """The first seed with rows of each of a few variants."""
  found = []
  for variant in selected(results, MOST):
    cells = (c for c in sorted(variant.cells, key=lambda c: c.seed) if c.state != 'failed')
    own = next((load for c in cells if (load := _load(c, results.label(variant.name)))), None)
    found += [own] if own else []
  return found[:_LOADS]


def _load(cell: Cell, label: str) -> Load | None:
  layers = experts(cell)
  keys = [(f'{TRAINING}/load/{layer}/{e}', n) for layer, n in layers.items() for e in range(n)]
  rows = [row for row in cell.rows if keys and keys[0][0] in row]
  if len(rows) < 2:
    return None
  relative_TR = np.array([[(row.get(key) or 0.0) * n for key, n in keys] for row in rows])
  parts = np.array_split(relative_TR, min(len(rows), _TIMES))
  relative_RT = np.stack([part.mean(axis=0) for part in parts], axis=1)
  return Load(label, cell.seed, [row['step'] for row in rows], layers, relative_RT)


def caption(results: Results) -> str:
  found = loads(results)
  all_of_them = len(measured(results))
  some = f' {_LOADS} of {all_of_them} variants.' if len(found) == _LOADS < all_of_them else ''
  return (
    'Load of each expert over training, a row an expert, number 0 of each layer at its top; the '
    'first seed. Colour: its share of the choices over the even share 1/E, from a quarter or less '
    f'to four times or more; full ink where nothing came.{some}'
    f'{" Layers of the encoder come before those of the decoder." if results.pairs else ""}'
  )


def draw(figure, results: Results, theme: Theme) -> None:
  from matplotlib.cm import ScalarMappable
  from matplotlib.colors import LinearSegmentedColormap, Normalize

  found = loads(results)
  columns = 2 if len(found) in (2, 4) else min(len(found), 3)
  rows = math.ceil(len(found) / columns)
  tallest = max(len(load.relative_RT) for load in found)
  deepest = max(len(load.layers) for load in found)
  height = min(max(1.5, 0.1 * tallest + 0.25 * deepest), 5.0 if rows == 1 else 3.8)
  figure.set_size_inches(8.4, rows * (height + 0.75) + 0.2)
  less, more = theme.verdicts['better'], theme.verdicts['worse']
  colours = LinearSegmentedColormap.from_list('load', [less, theme.grid, more]).with_extremes(
    bad=theme.ink
  )
  scale = Normalize(-_OCTAVES, _OCTAVES)
  panels = list(figure.subplots(rows, columns, squeeze=False).flat)
  for i, (load, ax) in enumerate(zip(found, panels, strict=False)):
    _draw_load(ax, load, colours, scale, theme)
    if i % columns and load.layers == found[i - 1].layers:
      ax.set_yticks([])
  for ax in panels[len(found) :]:
    ax.set_axis_off()
  bar = figure.colorbar(ScalarMappable(scale, colours), ax=panels, aspect=20, pad=0.02,
                        shrink=1 / rows, anchor=(0, 1),
                        ticks=range(-_OCTAVES, _OCTAVES + 1))  # fmt: skip
  bar.ax.set_yticklabels(['≤ ¼', '½', 'even', '2', '≥ 4'], size=8.5)
  bar.set_label('load / even share', size=8.5)
  bar.outline.set_visible(False)


def _draw_load(ax, load: Load, colours, scale, theme: Theme) -> None:
  from matplotlib.ticker import MaxNLocator

  many = len(load.relative_RT)
  octaves_RT = np.ma.log2(load.relative_RT)  # masked where there is no load
  ax.imshow(octaves_RT, cmap=colours, norm=scale, aspect='auto',
            extent=(0, load.steps[-1], many, 0))  # fmt: skip
  ends = np.cumsum(list(load.layers.values()))
  for end in ends[:-1]:
    ax.axhline(end, color=theme.paper, lw=3)
  middles = ends - np.array(list(load.layers.values())) / 2
  ax.set_yticks(middles, [f'layer {layer}' for layer in load.layers], size=8)
  ax.set_title(load.label, size=9.5, pad=5, weight='normal')
  ax.set_xlabel('step', size=8.5)
  ax.tick_params(labelsize=8, length=0)
  ax.grid(visible=False)
  ax.spines[['left', 'bottom']].set_visible(False)
  ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
