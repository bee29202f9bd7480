"""How evenly experts are used: a table of the last evaluation, loads and their measures in time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from transformer.analysis import stats
from transformer.analysis.curves import MOST, smooth
from transformer.analysis.drawing import labels_abreast, legend
from transformer.analysis.formats import NONE
from transformer.analysis.grid import selected
from transformer.analysis.inside import number
from transformer.analysis.results import Cell, Results, Variant, is_number
from transformer.analysis.theme import Look, Theme, looks

SECTION = 'Experts'
NOTE = (
  'On held-out tokens after the last step, mean over layers and finished seeds. Max violation: '
  'largest load over the mean load, less 1. Load cv: standard deviation of the load over its mean. '
  'Entropy: of the router’s probabilities for a token, log E at most. Dropped: choices without a '
  'place; where experts choose, tokens that none took. Log Z: log-sum-exp of the router’s scores.'
)
TRAINING, _HELD_OUT = 'router', 'eval_router'
_TITLES = {
  'entropy': 'entropy / log E',
  'max_violation': 'max violation',
  'dropped': 'dropped (share)',
}


def experts(cell: Cell) -> dict[int, int]:
  """Layer -> number of its experts, by the first row that tells a load."""
  stems = f'{TRAINING}/load/', f'{_HELD_OUT}/load/'
  row = next((r for r in cell.rows if any(k.startswith(stems) for k in r)), {})
  places = (key.split('/')[2:] for key in row if key.startswith(stems))
  found: dict[int, int] = {}
  for layer, expert in sorted((int(layer), int(expert)) for layer, expert in places):
    found[layer] = expert + 1
  return found


def measured(results: Results) -> list[Variant]:
  """Variants with experts that have been evaluated, in the order of `results.ranked`."""
  return [v for v in results.ranked if v.over_layers(f'{_HELD_OUT}/max_violation') is not None]


def table(results: Results) -> tuple[list[str], list[list[str]]]:
  """Headings and rows, a variant a row."""
  keys = [results.heading(path) for path in results.by] or ['run']
  found = [(v, _row(v)) for v in measured(results)]
  headings = [*keys, *found[0][1]] if found else keys
  return headings, [[*v.keys, *row.values()] for v, row in found]


def _row(variant: Variant) -> dict[str, str]:
  """Heading -> what it says of one variant."""
  sizes = sorted({n for c in variant.done for n in experts(c).values()})

  def of(name: str) -> float | None:
    return variant.over_layers(f'{_HELD_OUT}/{name}')

  share = of('entropy') if sizes[0] == sizes[-1] > 1 else None
  return {
    'experts': '/'.join(map(str, sizes)),
    'max violation': number(of('max_violation')),
    'load cv': number(of('load_cv')),
    'dead experts': number(of('dead_experts')),
    'dropped': _percent(of('dropped')),
    'entropy, nats': number(of('entropy')),
    'entropy / log E': _percent(share and share / math.log(sizes[0])),
    'log Z': number(of('log_z')),
  }


def _percent(share: float | None) -> str:
  return NONE if share is None else f'{100 * share:.1f} %'


# --- Over training.


@dataclass(frozen=True)
class Course:
  """A measure of one variant over training, mean over layers, over its seeds.

  points: of evaluations, the mean over those seeds.
  """

  variant: Variant
  steps: list[int]
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray
  points: list[tuple[int, float]]


def course(variant: Variant, name: str) -> Course | None:
  """Over the seeds that came furthest; entropy as a share of its largest value, log E."""
  found = [(c, _series(c, TRAINING, name)) for c in variant.cells if c.state != 'failed']
  longest = max((f for _, f in found), key=len, default={})
  if len(longest) < 2:
    return None
  same = [(c, f) for c, f in found if f.keys() == longest.keys()]
  lines = [smooth(np.array(list(f.values()))) for _, f in same]
  samples = [stats.sample(values) for values in zip(*lines, strict=True)]
  mean, low, high = (np.array([getattr(s, k) for s in samples]) for k in ('mean', 'low', 'high'))
  evaluated = [_series(c, _HELD_OUT, name) for c, _ in same]
  common = sorted(set.intersection(*(set(e) for e in evaluated)))
  points = [(step, float(np.mean([e[step] for e in evaluated]))) for step in common]
  return Course(variant, list(longest), mean, low, high, points)


def _series(cell: Cell, kind: str, name: str) -> dict[int, float]:
  """Step -> mean over the layers with experts."""
  parts = {
    f'{kind}/{name}/{layer}': math.log(many) if name == 'entropy' else 1.0
    for layer, many in experts(cell).items()
    if name != 'entropy' or many > 1
  }
  found = {}
  for row in cell.rows:
    values = [row[key] / unit for key, unit in parts.items() if is_number(row.get(key))]
    if values and 'step' in row:
      found[row['step']] = math.fsum(values) / len(values)
  return found


def courses(results: Results) -> dict[str, list[Course]]:
  """Measure -> its lines; what nobody has, and drops where training has none, are left out."""
  found = {}
  for name in _TITLES:
    lines = [c for v in selected(results, MOST) if (c := course(v, name))]
    if lines and (name != 'dropped' or any(c.high.max() > 0 for c in lines)):
      found[name] = lines
  return found


def caption(results: Results) -> str:
  found = courses(results)
  lacking = '' if 'dropped' in found else ' No token was dropped.'
  seeds = len(results.cells) > len(results.variants)
  bands = ' Bands: 95 % interval over seeds (range below 3 seeds).' if seeds else ''
  return (
    'Routing over training, mean over layers: lines are of training, a batch at a time (running '
    'median), dots of all held-out tokens at once, where loads are evener. Entropy of the router’s '
    'probabilities, where it has any, is told as a share of its largest value.'
    f'{lacking}{bands}'
  )


def draw(figure, results: Results, theme: Theme) -> None:
  found, look = courses(results), looks(results, theme)
  drawn = {c.variant.name for lines in found.values() for c in lines}
  shown = [v for v in selected(results, MOST) if v.name in drawn]
  labels, width = [results.label(v.name) for v in shown], 8.4
  abreast = labels_abreast(labels, width)
  figure.set_size_inches(width, 2.7 + 0.3 * math.ceil(len(labels) / abreast))
  panels = figure.subplots(1, len(found), squeeze=False).flat
  for (name, lines), ax in zip(found.items(), panels, strict=True):
    for c in lines:
      _draw_course(ax, c, look[c.variant.name], max(0.05, 0.2 / len(lines)), theme)
    _dress(ax, name, lines)
  if len(shown) > 1:
    legend(figure, labels, [look[v.name] for v in shown], abreast)


def _draw_course(ax, c: Course, look: Look, alpha: float, theme: Theme) -> None:
  ax.fill_between(c.steps, c.low, c.high, color=look.colour, alpha=alpha, lw=0)
  ax.plot(c.steps, c.mean, color=look.colour, lw=1.5, ls=look.dash)
  dots = np.array(c.points).reshape(-1, 2).T
  ax.plot(*dots, 'o', ms=4.2, color=look.colour, mec=theme.paper, mew=0.7, zorder=4, clip_on=False)


def _dress(ax, name: str, lines: list[Course]) -> None:
  from matplotlib.ticker import MaxNLocator, PercentFormatter

  ax.set_title(_TITLES[name], size=9.5, pad=5, weight='normal')
  ax.set_xlabel('step', size=8.5)
  ax.tick_params(labelsize=8)
  ax.set_xlim(0, max(c.steps[-1] for c in lines))
  top = max(max(c.high.max(), *(y for _, y in c.points), 0.0) for c in lines)
  ax.set_ylim(0, 1.02 if name == 'entropy' else max(1.06 * top, 0.01))
  ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
  if name != 'max_violation':
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=' %'))
