"""Loss against a number: one line of a single setting, or a line for each value of another."""

from __future__ import annotations

from transformer.analysis import formats
from transformer.analysis.budget import unmatched
from transformer.analysis.drawing import End, label_ends, number_axis, reference_lines, shifted
from transformer.analysis.grid import Grid, Line, grid
from transformer.analysis.results import Results
from transformer.analysis.theme import Look, Theme, looks

_MOST = 12  # lines that can be told apart and labelled
_FAR = 3.0  # a mean this many times further from the best than the median one is off the picture


def caption(results: Results) -> str:
  return (
    f'Held-out loss against {results.variable}: mean over seeds with 95 % t '
    f'interval; small dots are single seeds. {unmatched(results)}'
  ).strip()


def draw(figure, results: Results, theme: Theme) -> None:
  figure.set_size_inches(7.2, 4)
  ax = figure.add_subplot()
  rows = [v for v in results.ranked if v.loss.n]
  x = [float(v.name) for v in rows]
  mean = [v.loss.mean for v in rows]
  colour = theme.hues[0]
  number_axis(ax, dict(zip(x, (v.name for v in rows), strict=True)), results.variable)
  ax.plot(x, mean, color=colour, lw=1.6)
  for value, variant in zip(x, rows, strict=True):
    _interval(ax, value, variant.loss, colour)
    dots = dict(ms=3.2, color=colour, alpha=0.6, mew=0, transform=shifted(ax, 7))
    ax.plot([value] * variant.loss.n, variant.loss.values, 'o', **dots)
  ax.plot(x, mean, 'o', ms=7.5, color=colour, mec=theme.paper, mew=1.2, zorder=4)
  ax.set_title(f'Held-out loss against {results.variable}')
  ax.set_ylabel(results.measure.unit)
  reference_lines(ax, results, theme)


def _interval(ax, x: float, loss, colour: str, **how) -> None:
  if loss.half is not None:
    ax.plot([x, x], [loss.mean - loss.half, loss.mean + loss.half], color=colour, lw=2, **how)


def _shown(results: Results, g: Grid) -> list[Line]:
  """The lines there is room for: the best, and the baseline's."""
  return [line for i, line in enumerate(g.finished) if i < _MOST or line.holds(results.baseline)]


def grid_caption(results: Results) -> str:
  g = grid(results)
  shown = _shown(results, g)
  some = f'The best {len(shown)} of {len(g.lines)} lines. ' if len(shown) < len(g.lines) else ''
  lost = 'Crosses at the top: no seed came to an end. ' if any(map(_lost, shown)) else ''
  far = 'Means far above the rest are off the picture. ' if _top(shown) is not None else ''
  return (
    f'Held-out loss against {g.x}, a line for each {g.other}: mean over seeds with 95 % t '
    f'interval; rings: the best of each line. {some}{lost}{far}'
    f'{unmatched(results)}'
  ).strip()


def draw_grid(figure, results: Results, theme: Theme) -> None:
  g = grid(results)
  shown, look = _shown(results, g), looks(results, theme)
  figure.set_size_inches(8.4, max(4.8, 1.7 + 0.32 * len(shown)))
  ax = figure.add_subplot()
  at = results.by.index(g.x)
  number_axis(ax, {x: v.values[at] for line in g.lines for x, v in line.points}, g.x)
  step = min(3.5, 14 / len(shown))  # points between lines, so that intervals stand side by side
  ends = []
  for i, line in enumerate(shown):
    aside, own = step * (i - (len(shown) - 1) / 2), look[line.points[0][1].name]
    _draw_line(ax, line, own, shifted(ax, aside), theme)
    ends.append(_end(line, own, aside))
  ax.set_ylim(*_limits(shown))
  ax.set_title(f'Held-out loss against {g.x}')
  ax.set_ylabel(results.measure.unit)
  _mark_lost(ax, [(line, look[line.points[0][1].name]) for line in shown])
  _legend(ax, [(line, look[line.points[0][1].name]) for line in shown], at)
  label_ends(ax, ends, away=16)
  reference_lines(ax, results, theme, points=[p for line in shown for p in line.shown])


def _draw_line(ax, line: Line, look: Look, beside, theme: Theme) -> None:
  xs = [x for x, _ in line.shown]
  means = [v.loss.mean for _, v in line.shown]
  ax.plot(xs, means, color=look.colour, lw=1.5, ls=look.dash, transform=beside)
  for x, v in line.shown:
    _interval(ax, x, v.loss, look.colour, alpha=0.75, transform=beside)
  dots = dict(color=look.colour, mec=theme.paper, transform=beside)
  ax.plot(xs, means, 'o', ms=5.5, mew=0.8, zorder=4, **dots)
  x, best = line.best
  ax.plot(x, best.loss.mean, 'o', ms=10.5, mfc='none', mec=look.colour, mew=1.6, zorder=5,
          transform=beside)  # fmt: skip


def _legend(ax, lines: list[tuple[Line, Look]], at: int) -> None:
  """The best of each line, below the axes where no point is."""
  from matplotlib.lines import Line2D

  how = dict(marker='o', mfc='none', mew=1.6, ms=8, lw=0)
  handles = [
    Line2D([], [], color=look.colour, label=_best(line, at), **how) for line, look in lines
  ]
  widest = max(len(h.get_label()) for h in handles)
  ax.figure.legend(handles=handles, loc='outside lower left', title='best of each line',
                   ncols=max(1, int(100 / (widest + 8))), frameon=False, fontsize=9,
                   title_fontsize=9, alignment='left', handletextpad=0.3)  # fmt: skip


def _best(line: Line, at: int) -> str:
  _, best = line.best
  return f'{line.name}  {formats.loss(best.loss.mean)} at {best.values[at]}'


def _lost(line: Line) -> list[float]:
  """Where a line has nothing but failures."""
  return [x for x, v in line.points if v.cells and all(c.state == 'failed' for c in v.cells)]


def _mark_lost(ax, lines: list[tuple[Line, Look]]) -> None:
  """Crosses side by side at the top."""
  lost: dict[float, list[str]] = {}
  for line, look in lines:
    for x in _lost(line):
      lost.setdefault(x, []).append(look.colour)
  for x, colours in lost.items():
    for i, colour in enumerate(colours):
      away = 8 * (i - (len(colours) - 1) / 2)
      ax.annotate('×', (x, 1), (away, -2), xycoords=ax.get_xaxis_transform(), ha='center', va='top',
                  textcoords='offset points', size=12, color=colour)  # fmt: skip


def _top(lines: list[Line]) -> float | None:
  """Where to cut the picture so that a rate that ran wild does not flatten it; None: nowhere."""
  means = sorted(v.loss.mean for line in lines for _, v in line.shown)
  usual = means[0] + _FAR * (means[len(means) // 2] - means[0])
  return usual if means[-1] > usual > means[0] else None


def _limits(lines: list[Line]) -> tuple[float, float]:
  """The losses in the picture, with their intervals."""
  losses = [v.loss for line in lines for _, v in line.shown]
  low = min(s.mean - (s.half or 0) for s in losses)
  high = max(s.mean + (s.half or 0) for s in losses)
  high = min(high, _top(lines) or high)
  room = 0.06 * (high - low) or 0.1
  return low - room, high + room


def _end(line: Line, look: Look, aside: float) -> End:
  x, last = line.shown[-1]
  return End(x, last.loss.mean, line.name, look.colour, aside)
