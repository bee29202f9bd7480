"""Loss over training, and its last part enlarged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from transformer.analysis import formats, stats
from transformer.analysis.drawing import End, label_ends, reference_lines
from transformer.analysis.grid import grid, selected
from transformer.analysis.measures import BITS, NATS
from transformer.analysis.results import Cell, Results, Variant
from transformer.analysis.theme import Theme, looks

MOST = 12  # lines that can be told apart and labelled


@dataclass(frozen=True)
class Curve:
  """A variant's training loss over its seeds, smoothed, and its held-out points.

  The line is through those points where training losses do not compare.
  """

  name: str
  steps: np.ndarray
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray
  points: list[tuple[int, float]]  # step, mean held-out loss over the seeds that got there
  spikes: tuple[tuple[int, float], ...]  # a row of some seed with spikes since the one before


def caption(results: Results) -> str:
  """What the picture shows, and what it leaves out."""
  curves = _curves(results)
  parts = [_what(results)]
  if len(curves) < len(results.variants):
    parts.append(_left_out(results))
  if len(results.cells) > len(results.variants):
    parts.append('Bands: 95 % interval of the mean over seeds (range below 3 seeds).')
  if any(c.spikes for c in curves):
    parts.append('Crosses: rows with loss spikes of any seed, at their loss.')
  if len(results.variants) > 1:
    parts.append('Right: the last part of training, enlarged.')
  return ' '.join(p for p in parts if p)


def _what(results: Results) -> str:
  if results.measure is not BITS:
    unit = results.measure.unit
    return f'Training loss (line, running median) and held-out loss (dots), {unit}.'
  return (
    f'Held-out loss at each evaluation, {results.measure.unit}; the training loss is in nats per '
    'token, which do not compare.'
  )


def _left_out(results: Results) -> str:
  g = grid(results)
  if g:
    return f'Each {results.heading(g.other)} at its best {results.heading(g.x)}.'
  return 'Only the best, and the baseline.' if len(results.variants) > MOST else ''


def draw(figure, results: Results, theme: Theme) -> None:
  curves = _curves(results)
  if len(results.variants) == 1:
    figure.set_size_inches(7.2, 4)
    whole, enlarged = figure.add_subplot(), None
  else:
    figure.set_size_inches(8.4, 4.3)
    whole, enlarged = figure.subplots(1, 2, width_ratios=(1, 1.25))
  whole.set_title('Loss over training')
  whole.set_ylabel(results.measure.unit)
  _draw_curves(whole, curves, 0.0, results, theme)
  if enlarged is not None:
    _draw_curves(enlarged, curves, 0.55, results, theme)
    enlarged.set_title('The last part, enlarged')
    _frame(whole, enlarged, theme)
    label_ends(enlarged, _ends(enlarged, results, curves, theme))
    shown = reference_lines(enlarged, results, theme)
    reference_lines(whole, results, theme, unnamed=shown)
  else:
    reference_lines(whole, results, theme)


def there(results: Results) -> bool:
  """Whether there is a curve to draw."""
  return bool(_curves(results))


def _curves(results: Results) -> list[Curve]:
  return [c for c in map(_curve, selected(results, MOST)) if c]


def smooth(values: np.ndarray) -> np.ndarray:
  """Running median of the last few points, a twentieth of them: of what was, not of what comes.

  A median of three at least, so that one step up is no slope; below 20 points nothing is smoothed.
  """
  many = len(values)
  width = max(3, many // 20)
  if many < 20:
    return np.asarray(values, float)
  return np.array([np.median(values[max(0, i + 1 - width) : i + 1]) for i in range(many)])


def _curve(variant: Variant) -> Curve | None:
  """The curve over the seeds that came furthest; those still behind would bend the mean."""
  series = [(c, *c.series(variant.measure.line)) for c in variant.cells if c.state != 'failed']
  longest = max((steps for _, steps, _ in series), key=len, default=[])
  if len(longest) < 2:
    return None
  drawn = smooth if variant.measure.line == NATS.line else np.asarray
  whole = [(c, drawn(np.asarray(values))) for c, steps, values in series if steps == longest]
  found = [stats.sample(values) for values in zip(*(line for _, line in whole), strict=True)]
  mean = np.array([s.mean for s in found])
  low, high = np.array([s.low for s in found]), np.array([s.high for s in found])
  cells = [c for c, _ in whole]
  points, spikes = _held_out(cells, variant.measure.key), _spikes(cells, variant.measure.line)
  return Curve(variant.name, np.asarray(longest), mean, low, high, points, spikes)


def _held_out(cells: list[Cell], key: str) -> list[tuple[int, float]]:
  """(step, mean held-out loss) where every one of these cells has one."""
  each = [dict(zip(*c.series(key), strict=True)) for c in cells]
  steps = sorted(set.intersection(*(set(e) for e in each)))
  return [(step, float(np.mean([e[step] for e in each]))) for step in steps]


def _spikes(cells: list[Cell], key: str) -> tuple[tuple[int, float], ...]:
  """(step, its own loss) of every row with a spike; a row without that loss lies between others."""
  found = []
  for c in cells:
    steps, losses = c.series(key)
    hit = [step for step, count in zip(*c.series('train/spikes'), strict=True) if count]
    found += [(step, float(np.interp(step, steps, losses))) for step in hit]
  return tuple(sorted(found))


def _draw_curves(ax, curves: list[Curve], start: float, results: Results, theme: Theme) -> None:
  """Lines, bands, dots and crosses from a share `start` of the longest curve on."""
  first = _limits(ax, curves, start)
  look = looks(results, theme)
  alpha = max(0.05, 0.2 / len(curves))  # many bands over each other would be mud
  for curve in curves:
    colour, dash = look[curve.name].colour, look[curve.name].dash
    ax.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=alpha, lw=0)
    ax.plot(curve.steps, curve.mean, color=colour, lw=1.5, ls=dash)
    points = np.array([p for p in curve.points if p[0] >= first]).reshape(-1, 2).T
    ax.plot(*points, 'o', ms=4.8, color=colour, mec=theme.paper, mew=0.8, zorder=4, clip_on=False)
    spikes = [(s, min(loss, ax.get_ylim()[1])) for s, loss in curve.spikes if s >= first]
    for at in spikes:  # none is drawn of none: an empty line takes the layout's room
      ax.plot(*at, 'x', ms=6.5, color=colour, mew=1.7, zorder=5, clip_on=False)
  ax.set_xlabel('step')


def _limits(ax, curves: list[Curve], start: float) -> float:
  """Shows the steps from there on and the losses met there; returns the first step."""
  end = max(c.steps[-1] for c in curves)
  first = start * end
  values = [loss for c in curves for loss in c.mean[c.steps >= first]]
  values += [loss for c in curves for step, loss in c.points if step >= first]
  low, high = min(values), max(values)
  spikes = [loss for c in curves for step, loss in c.spikes if step >= first]
  high = min(
    max([high, *spikes]), high + 0.5 * (high - low)
  )  # a wild one must not flatten the rest
  room = 0.06 * (high - low) or 0.1
  ax.set_ylim(low - room, high + room)
  ax.set_xlim(first, end)
  return first


def _frame(ax, inner, theme: Theme) -> None:
  """Marks in the left picture what the right one enlarges."""
  (left, right), (low, high) = inner.get_xlim(), inner.get_ylim()
  ax.fill([left, right, right, left], [low, low, high, high], fill=False, ec=theme.faint, lw=0.9)


def _ends(ax, results: Results, curves: list[Curve], theme: Theme) -> list[End]:
  """Of the lines that reach the right edge; their number is the mean of the finished seeds."""
  right, look = ax.get_xlim()[1], looks(results, theme)
  loss = {v.name: v.loss for v in results.variants}
  found = []
  for c in curves:
    if c.steps[-1] >= 0.98 * right:
      y = c.points[-1][1] if c.points else float(c.mean[-1])
      value = f'  {formats.loss(loss[c.name].mean)}' if loss[c.name].n else ''
      found.append(End(right, y, f'{results.label(c.name)}{value}', look[c.name].colour))
  return found
