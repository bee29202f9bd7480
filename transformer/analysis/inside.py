"""What the FFNs' hidden units did at the last evaluation: a table, and a picture by layer."""

from __future__ import annotations

import math

from transformer.analysis import stats
from transformer.analysis.curves import MOST
from transformer.analysis.drawing import labels_abreast, legend
from transformer.analysis.grid import selected
from transformer.analysis.results import Cell, Results, Variant
from transformer.analysis.theme import Look, Theme, looks

SECTION = 'Inside the FFN'
_PREFIX = 'ffn/'
_HEADINGS = {  # in the order they are shown; others follow under their own name
  'zeros': 'zeros (share)',
  'dead': 'dead units (share)',
  'saturation': 'saturation (share)',
  'kurtosis': 'kurtosis',
  'effective_rank': 'effective rank',
  'update_ratio': 'update / stream',
  'up_norm': 'largest σ of up',
  'up_effective_rank': 'effective rank of up',
  'gate_norm': 'largest σ of gate',
  'gate_effective_rank': 'effective rank of gate',
  'down_norm': 'largest σ of down',
  'down_effective_rank': 'effective rank of down',
}


def heading(name: str) -> str:
  return _HEADINGS.get(name, name.replace('_', ' '))


def layers(cell: Cell, name: str) -> dict[int, float]:
  """Layer -> the statistic at the cell's last evaluation; {} where there is none."""
  return cell.by_layer(_PREFIX + name)


def statistics(results: Results) -> list[str]:
  """The statistics that finished cells have."""
  keys = (key for key in results.rows_keys if key.startswith(_PREFIX))
  found = {key.removeprefix(_PREFIX).rpartition('/')[0] for key in keys}
  names = [n for n in found if any(layers(c, n) for c in results.done)]
  order = list(_HEADINGS)
  return sorted(names, key=lambda n: (order.index(n) if n in order else len(order), n))


def mean(variant: Variant, name: str) -> float | None:
  """Over layers and finished seeds; None where there is nothing."""
  return variant.over_layers(_PREFIX + name)


def table(results: Results) -> tuple[list[str], list[list[str]]]:
  """Headings and rows, a variant a row: each statistic's mean over seeds and layers."""
  names = statistics(results)
  keys = [results.heading(path) for path in results.by] or ['run']
  rows = [[*v.keys, *(number(mean(v, n)) for n in names)] for v in results.ranked if v.done]
  return [*keys, *map(heading, names)], rows


def number(value: float | None) -> str:
  """Three digits: 0.471, 12.3, 305, 3.1e-05."""
  if value is None:
    return '–'
  return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.3g}'.replace('-', '−')


def caption(results: Results) -> str:
  some = len(selected(results, MOST)) < len(results.variants)
  return (
    'Statistics of the FFN by layer at the last evaluation: mean over seeds, with 95 % t interval '
    f'(range below 3 seeds).{" The variants of the loss curves." if some else ""}'
    f'{" Layers of the encoder come before those of the decoder." if results.pairs else ""}'
  )


def draw(figure, results: Results, theme: Theme) -> None:
  names, look = statistics(results), looks(results, theme)
  variants = [v for v in selected(results, MOST) if v.done]
  columns = min(3, len(names))
  rows = math.ceil(len(names) / columns)
  labels = [results.label(v.name) for v in variants]
  width = 2.8 * columns + 0.2
  abreast = labels_abreast(labels, width)
  figure.set_size_inches(width, 2.05 * rows + 0.3 * math.ceil(len(labels) / abreast) + 0.2)
  panels = figure.subplots(rows, columns, squeeze=False).flat
  for name, ax in zip(names, panels, strict=False):
    for v in variants:
      _draw_layers(ax, v, name, look[v.name], 0.3 / len(variants), theme)
    _dress(ax, name)
  for ax in list(panels):  # those that the loop above has left
    ax.set_axis_off()
  if len(variants) > 1:
    legend(figure, labels, [look[v.name] for v in variants], abreast)


def _draw_layers(ax, variant: Variant, name: str, look: Look, alpha: float, theme: Theme) -> None:
  cells = [layers(c, name) for c in variant.done]
  xs = sorted(set().union(*cells))
  found = [stats.sample(c[x] for c in cells if x in c) for x in xs]
  if not found:
    return
  low, high, means = zip(*((s.low, s.high, s.mean) for s in found), strict=True)
  ax.fill_between(xs, low, high, color=look.colour, alpha=max(alpha, 0.05), lw=0)
  ax.plot(xs, means, 'o', ls=look.dash, lw=1.4, ms=3.8, color=look.colour, mec=theme.paper, mew=0.5)


def _dress(ax, name: str) -> None:
  from matplotlib.ticker import LogFormatterSciNotation, LogLocator, MaxNLocator, NullFormatter

  ax.set_title(heading(name), size=9.5, pad=5, weight='normal')
  ax.set_xlabel('layer', size=8.5)
  ax.tick_params(labelsize=8)
  values = [y for line in ax.lines for y in line.get_ydata()]
  bands = [y for band in ax.collections for path in band.get_paths() for y in path.vertices[:, 1]]
  if min(values) > 0 and max(values) >= 30 * min(values):
    ax.set_yscale('log')
    ax.set_ylim(max(min(bands), min(values) / 10) / 1.3, 1.3 * max(bands))
    ax.yaxis.set_major_locator(LogLocator(numticks=5))
    ax.yaxis.set_major_formatter(LogFormatterSciNotation())
    ax.yaxis.set_minor_formatter(NullFormatter())
  elif heading(name).endswith('(share)'):
    ax.set_ylim(0, max(1.08 * max(bands), 0.01))
  xs = [x for line in ax.lines for x in line.get_xdata()]
  ax.set_xlim(min(xs) - 0.3, max(xs) + 0.3)
  ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
