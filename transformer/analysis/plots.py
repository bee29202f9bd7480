"""The pictures of a report, each in a light and a dark version: curves, differences, a variable.

Colours: Okabe & Ito's palette, told apart with any colour vision, lightened for the dark version;
numeric variants take an ordered scale. Lines are labelled at their ends rather than in a legend.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from transformer.analysis import formats, stats
from transformer.analysis.results import Cell, Results, Variant


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
  {'better': '#0072b2', 'worse': '#d55e00', 'tie': '#767d86', 'too few seeds': '#767d86'},
)  # fmt: skip
DARK = Theme(
  '#16191d', '#eceff2', '#a2aab3', '#2b3036',
  ('#4ba3de', '#f08a3c', '#2cc295', '#e39cc4', '#e3c04b', '#9ad3f5', '#b39ddb', '#c8a47e'),
  (0.36, 1.0),
  {'better': '#4ba3de', 'worse': '#f08a3c', 'tie': '#a2aab3', 'too few seeds': '#a2aab3'},
)  # fmt: skip


@dataclass(frozen=True)
class Plot:
  """One picture: file name without ending, caption, both versions as PNG."""

  name: str
  caption: str
  light: bytes
  dark: bytes


def draw(results: Results) -> list[Plot]:
  """Every picture the finished and running cells have data for."""
  found = []
  if any(_curve(v) for v in results.variants):
    found.append(_both('loss', _curves_caption(results), _curves, results))
  if any(v.difference and v.difference.sample.n for v in results.variants):
    found.append(_both('differences', _differences_caption(results), _differences, results))
  if results.numeric and sum(bool(v.done) for v in results.variants) > 1:
    found.append(_both('variable', _variable_caption(results), _variable, results))
  return found


def _both(name: str, caption: str, draw_one, results: Results) -> Plot:
  return Plot(name, caption, *(_render(draw_one, results, theme) for theme in (LIGHT, DARK)))


def _render(draw_one, results: Results, theme: Theme) -> bytes:
  import matplotlib as mpl
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  with mpl.rc_context(_style(theme)):
    figure = Figure(layout='constrained')
    FigureCanvasAgg(figure)
    draw_one(figure, results, theme)
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


def colours(results: Results, theme: Theme) -> dict[str, str]:
  """Variant -> colour; the baseline in ink, numbers along an ordered scale."""
  if len(results.variants) == 1:
    return {results.variants[0].name: theme.hues[0]}
  if results.numeric:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    ordered = [v.name for v in results.ranked]
    places = np.linspace(*theme.scale, len(ordered))
    return {n: to_hex(colormaps['viridis'](p)) for n, p in zip(ordered, places, strict=True)}
  others = [v.name for v in results.variants if v.name != results.baseline]
  found = {name: theme.hues[i % len(theme.hues)] for i, name in enumerate(others)}
  return found | {results.baseline: theme.ink}


# Loss curves


@dataclass(frozen=True)
class Curve:
  """A variant's training loss over its seeds, smoothed, and its held-out points."""

  name: str
  steps: np.ndarray
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray
  points: list[tuple[int, float]]  # step, mean held-out loss over the seeds that got there


def _curves_caption(results: Results) -> str:
  band = 'Bands: 95 % interval of the mean over seeds (range below 3 seeds). '
  several = len(results.cells) > len(results.variants)
  return (
    f'Training loss (line, running mean) and held-out loss (dots), nats per token. '
    f'{band if several else ""}'
    f'{"Right: the last part of training, enlarged." if len(results.variants) > 1 else ""}'
  ).strip()


def smooth(values: np.ndarray) -> np.ndarray:
  """Running mean over about a tenth of the points: centred, narrow at the steep start."""
  n, half = len(values), max(1, len(values) // 20)
  total = np.concatenate([[0.0], np.cumsum(values)])
  place = np.arange(n)
  first = place - np.minimum(half, place)
  last = place + np.minimum(half, np.minimum(place, n - 1 - place))
  return (total[last + 1] - total[first]) / (last + 1 - first)


def _curve(variant: Variant) -> Curve | None:
  """The curve over the seeds that came furthest; those still behind would bend the mean."""
  series = [(c, *c.series('train/loss')) for c in variant.cells if c.state != 'failed']
  longest = max((steps for _, steps, _ in series), key=len, default=[])
  if len(longest) < 2:
    return None
  whole = [(c, smooth(np.asarray(values))) for c, steps, values in series if steps == longest]
  found = [stats.sample(values) for values in zip(*(line for _, line in whole), strict=True)]
  mean = np.array([s.mean for s in found])
  low = np.array([min(s.values) if s.half is None else s.mean - s.half for s in found])
  high = np.array([max(s.values) if s.half is None else s.mean + s.half for s in found])
  points = _held_out([c for c, _ in whole])
  return Curve(variant.name, np.asarray(longest), mean, low, high, points)


def _held_out(cells: list[Cell]) -> list[tuple[int, float]]:
  """(step, mean held-out loss) where every one of these cells has one."""
  each = [dict(zip(*c.series('eval/loss'), strict=True)) for c in cells]
  steps = sorted(set.intersection(*(set(e) for e in each)))
  return [(step, float(np.mean([e[step] for e in each]))) for step in steps]


def _curves(figure, results: Results, theme: Theme) -> None:
  curves = [c for c in map(_curve, results.ranked) if c]
  if len(results.variants) == 1:
    figure.set_size_inches(7.2, 4)
    whole, enlarged = figure.add_subplot(), None
  else:
    figure.set_size_inches(8.4, 4.3)
    whole, enlarged = figure.subplots(1, 2, width_ratios=(1, 1.25))
  whole.set_title('Loss over training')
  whole.set_ylabel('nats per token')
  _draw_curves(whole, curves, 0.0, results, theme)
  if enlarged is not None:
    _draw_curves(enlarged, curves, 0.55, results, theme)
    enlarged.set_title('The last part, enlarged')
    _frame(whole, enlarged, theme)
    _label_ends(enlarged, results, curves, colours(results, theme))
    shown = _reference_lines(enlarged, results, theme)
    _reference_lines(whole, results, theme, unnamed=shown)
  else:
    _reference_lines(whole, results, theme)


def _draw_curves(ax, curves: list[Curve], start: float, results: Results, theme: Theme) -> None:
  """Lines, bands and dots from a share `start` of the longest curve on."""
  first = _limits(ax, curves, start)
  paint = colours(results, theme)
  alpha = max(0.05, 0.2 / len(curves))  # many bands over each other would be mud
  for curve in curves:
    colour = paint[curve.name]
    ax.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=alpha, lw=0)
    ax.plot(curve.steps, curve.mean, color=colour, lw=1.5)
    points = np.array([p for p in curve.points if p[0] >= first]).reshape(-1, 2).T
    ax.plot(*points, 'o', ms=4.8, color=colour, mec=theme.paper, mew=0.8, zorder=4, clip_on=False)
  ax.set_xlabel('step')


def _limits(ax, curves: list[Curve], start: float) -> float:
  """Shows the steps from there on and the losses met there; returns the first step."""
  end = max(c.steps[-1] for c in curves)
  first = start * end
  values = [loss for c in curves for loss in c.mean[c.steps >= first]]
  values += [loss for c in curves for step, loss in c.points if step >= first]
  room = 0.06 * (max(values) - min(values)) or 0.1
  ax.set_ylim(min(values) - room, max(values) + room)
  ax.set_xlim(first, end)
  return first


def _frame(ax, inner, theme: Theme) -> None:
  """Marks in the left picture what the right one enlarges."""
  (left, right), (low, high) = inner.get_xlim(), inner.get_ylim()
  ax.fill([left, right, right, left], [low, low, high, high], fill=False, ec=theme.faint, lw=0.9)


def _reference_lines(ax, results: Results, theme: Theme, unnamed: tuple = ()) -> tuple:
  """Draws the n-gram references in range; returns their names. `unnamed` get no label."""
  right, (low, high) = ax.get_xlim()[1], ax.get_ylim()
  found = {n: results.references.get(n) for n in ('unigram', 'bigram')}
  found = {n: value for n, value in found.items() if value is not None and low < value < high}
  for name, value in found.items():
    ax.axhline(value, color=theme.faint, lw=1, ls=(0, (5, 3)), zorder=1)
    if name not in unnamed:
      ax.annotate(f'{name} count {formats.loss(value, 2)}', (right, value), (-4, 2),
                  textcoords='offset points', ha='right', size=8.5, color=theme.faint)  # fmt: skip
  return tuple(found)


def _label_ends(ax, results: Results, curves: list[Curve], paint: dict) -> None:
  """Names the lines that reach the right edge, spread so that none covers another.

  The number is the mean held-out loss of the finished seeds.
  """
  (_, right), (low, high) = ax.get_xlim(), ax.get_ylim()
  loss = {v.name: v.loss for v in results.variants}
  curves = [c for c in curves if c.steps[-1] >= 0.98 * right]
  ends = [c.points[-1][1] if c.points else float(c.mean[-1]) for c in curves]
  order = np.argsort(ends)
  spread = _spread(np.array(ends)[order], 0.062 * (high - low), low, high)
  for i, y in zip(order, spread, strict=True):
    name, colour = curves[i].name, paint[curves[i].name]
    value = f'  {formats.loss(loss[name].mean)}' if loss[name].n else ''
    ax.annotate(
      f'{results.label(name)}{value}', (right, ends[i]), (22, y),
      textcoords=('offset points', 'data'), va='center', size=9.5, color=colour,
      annotation_clip=False,
      arrowprops=dict(arrowstyle='-', color=colour, lw=0.8, shrinkA=1, shrinkB=2,
                      relpos=(0, 0.5)),
    )  # fmt: skip


def _spread(values: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
  """Positions nearest to the ascending `values` that are `gap` apart and inside the limits.

  Less gap times rank, positions must only not fall: neighbours that do are pooled to their mean.
  """
  rank = np.arange(len(values)) * gap
  room = max(low, high - gap * (len(values) - 1))
  pools: list[list[float]] = []
  for value in np.clip(values - rank, low, room):
    pools.append([value])
    while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
      pools[-2:] = [pools[-2] + pools[-1]]
  return np.concatenate([np.full(len(p), np.mean(p)) for p in pools] or [rank]) + rank


# Differences to the baseline


def _differences_caption(results: Results) -> str:
  return (
    f'Held-out loss minus that of {results.label(results.baseline)} at the same seed, nats per '
    'token: mean with 95 % t interval, and every seed as a small dot. Left of zero is better; '
    'blue is better and orange worse after Holm’s correction, grey is a tie.'
  )


def _differences(figure, results: Results, theme: Theme) -> None:
  rows = [v for v in results.variants if v.difference and v.difference.sample.n]
  if not results.numeric:
    rows.sort(key=lambda v: v.difference.sample.mean)
  else:
    rows.sort(key=lambda v: float(v.name))
  figure.set_size_inches(8.4, 1.45 + 0.44 * len(rows))
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
  ax.set_xlabel(f'difference to {base}, nats per token')
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


# Loss against a numeric variable


def _variable_caption(results: Results) -> str:
  return (
    f'Held-out loss against {results.variable}: mean over seeds with 95 % t '
    'interval; small dots are single seeds.'
  )


def _variable(figure, results: Results, theme: Theme) -> None:
  from matplotlib.transforms import ScaledTranslation

  figure.set_size_inches(7.2, 4)
  ax = figure.add_subplot()
  rows = [v for v in results.ranked if v.done]
  x = [float(v.name) for v in rows]
  mean = [v.loss.mean for v in rows]
  colour = theme.hues[0]
  logarithmic = min(x) > 0
  if logarithmic:
    ax.set_xscale('log', base=2)
  beside = ax.transData + ScaledTranslation(7 / 72, 0, figure.dpi_scale_trans)
  ax.plot(x, mean, color=colour, lw=1.6)
  for value, variant in zip(x, rows, strict=True):
    if variant.loss.half is not None:
      ends = [variant.loss.mean - variant.loss.half, variant.loss.mean + variant.loss.half]
      ax.plot([value, value], ends, color=colour, lw=2.2)
    dots = dict(ms=3.2, color=colour, alpha=0.6, mew=0, transform=beside)
    ax.plot([value] * variant.loss.n, variant.loss.values, 'o', **dots)
  ax.plot(x, mean, 'o', ms=7.5, color=colour, mec=theme.paper, mew=1.2, zorder=4)
  ax.set_xticks(x, [v.name for v in rows])
  ax.minorticks_off()
  ax.set_title(f'Held-out loss against {results.variable}')
  ax.set_xlabel(f'{results.variable}{" (logarithmic)" if logarithmic else ""}')
  ax.set_ylabel('nats per token')
  _reference_lines(ax, results, theme)
