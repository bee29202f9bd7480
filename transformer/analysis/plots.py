"""The pictures of a report, and the one of differences to the baseline."""

from __future__ import annotations

import numpy as np

from transformer.analysis import curves, formats, inside, loads, routing, search, sweep
from transformer.analysis.budget import unmatched
from transformer.analysis.grid import grid
from transformer.analysis.results import AHEAD, Results, Variant
from transformer.analysis.theme import Plot, Theme, both
from transformer.analysis.verdict import not_compared

NAMES = ('search', 'loss', 'differences', 'variable', 'routing', 'load', 'inside')  # there may be
_MOST = 40  # rows of differences


def draw(results: Results) -> list[Plot]:
  """Every picture the finished and running cells have data for."""
  found = []
  g = grid(results)
  if search.trials(results):
    found.append(both('search', search.caption(results), search.draw, results))
  if g and len(g.finished) and sum(v.loss.n > 0 for v in results.variants) > 1:
    found.append(both('variable', sweep.grid_caption(results), sweep.draw_grid, results))
  if curves.there(results):
    found.append(both('loss', curves.caption(results), curves.draw, results))
  if _rows(results):
    found.append(both('differences', _differences_caption(results), _differences, results))
  if results.numeric and sum(v.loss.n > 0 for v in results.variants) > 1:
    found.append(both('variable', sweep.caption(results), sweep.draw, results))
  if routing.courses(results):
    own = routing.caption(results), routing.draw
    found.append(both('routing', *own, results, routing.SECTION))
  if loads.loads(results):
    own = loads.caption(results), loads.draw
    found.append(both('load', *own, results, routing.SECTION))
  if inside.statistics(results):
    own = inside.caption(results), inside.draw
    found.append(both('inside', *own, results, inside.SECTION))
  return found


def _rows(results: Results) -> list[Variant]:
  """The variants with a difference, numbers by value, others from best to worst."""
  rows = [v for v in results.variants if v.difference and v.difference.sample.n]
  by_value = results.numeric
  rows.sort(key=lambda v: float(v.name) if by_value else v.difference.sample.mean)
  return rows[:_MOST]


def _differences_caption(results: Results) -> str:
  rows = _rows(results)
  some = f' The best {_MOST}.' if len(rows) == _MOST < len(results.variants) - 1 else ''
  unlike = formats.listing([results.label(v.name) for v in not_compared(results)], most=8)
  lost = f' Not comparable, and not shown: {unlike}.' if unlike else ''
  ahead = f'{AHEAD}: looks ahead, a win of it is void.' if any(v.mark for v in rows) else ''
  return (
    f'Held-out loss minus that of {results.label(results.baseline)} at the same seed, '
    f'{results.measure.unit}: mean with 95 % t interval, and every seed as a small dot. Left of '
    'zero is better; blue is better and orange worse after Holm’s correction, grey is a '
    f'tie.{some}{lost}{ahead} {unmatched(results)}'
  ).strip()


def _differences(figure, results: Results, theme: Theme) -> None:
  rows = _rows(results)
  figure.set_size_inches(8.4, 1.45 + (0.44 if len(rows) <= 16 else 0.34) * len(rows))
  ax = figure.add_subplot()
  base = results.label(results.baseline)
  ax.set_title(f'Held-out loss minus that of {base}, same seeds', pad=22)
  ax.axvline(0, color=theme.ink, lw=1)
  for y, variant in enumerate(rows):
    _draw_difference(ax, y, variant, theme)
  ax.set_yticks(range(len(rows)), [results.label(v.name) for v in rows])
  ax.set_ylim(len(rows) - 0.4, -0.6)
  ax.grid(axis='y', visible=False)
  ax.spines['left'].set_visible(False)
  ax.set_xlabel(f'difference to {base}, {results.measure.unit}')
  for text, side, away in (('← better', 'right', -6), ('worse →', 'left', 6)):
    ax.annotate(text, (0, 1), (away, 2), xycoords=('data', 'axes fraction'), ha=side, size=9,
                textcoords='offset points', color=theme.faint)  # fmt: skip
  ax.margins(x=0.06)


def _draw_difference(ax, y: int, variant: Variant, theme: Theme) -> None:
  d = variant.difference
  colour = theme.verdicts[d.verdict]
  values = d.sample.values
  below = np.full(len(values), y + 0.24)
  ax.plot(values, below, 'o', ms=3.2, color=colour, alpha=0.65, mew=0)
  if d.sample.half is not None:
    ends = [d.sample.mean - d.sample.half, d.sample.mean + d.sample.half]
    ax.plot(ends, [y, y], color=colour, lw=2.4)
  ax.plot(d.sample.mean, y, 'o', ms=7.5, color=colour, mec=ax.get_facecolor(), mew=1.2, zorder=4)
  ax.text(1.01, y, formats.with_interval(d.sample, sign=True), color=colour, va='center',
          size=9.5, transform=ax.get_yaxis_transform())  # fmt: skip
