"""What several pictures draw alike: labels at line ends, reference lines, axes of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transformer.analysis import formats
from transformer.analysis.results import Results
from transformer.analysis.theme import Look, Theme

_GAP = 0.062  # between labels, as a share of the axis' height
_PLACES = {1.0: 0.88, 0.0: 0.12, 0.5: 0.5}  # where a label is aligned -> its centre
_LABEL = 0.16  # half its width and some air, as a share of the axis
_DECADES = 8  # an axis over numbers further apart than this factor is logarithmic


@dataclass(frozen=True)
class End:
  """Of a line, where its label points to."""

  x: float
  y: float
  text: str
  colour: str
  aside: float = 0.0  # points to the right of x


def label_ends(ax, ends: list[End], away: float = 22) -> None:
  """Names lines right of the axes, spread so that none covers another. away: in points."""
  (_, right), (low, high) = ax.get_xlim(), ax.get_ylim()
  ends = sorted(ends, key=lambda e: e.y)
  inside = np.clip([e.y for e in ends], low, high)
  for end, at, y in zip(ends, inside, spread(inside, _GAP * (high - low), low, high), strict=True):
    ax.annotate(
      end.text, (end.x, at), xytext=(right, y), va='center', size=9.5, color=end.colour,
      textcoords=shifted(ax, away), annotation_clip=False,
      xycoords=shifted(ax, end.aside),
      arrowprops=dict(arrowstyle='-', color=end.colour, lw=0.8, shrinkA=1, shrinkB=2,
                      relpos=(0, 0.5), alpha=0.8),
    )  # fmt: skip


def shifted(ax, points: float):
  from matplotlib.transforms import ScaledTranslation

  return ax.transData + ScaledTranslation(points / 72, 0, ax.figure.dpi_scale_trans)


def spread(values: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
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


def reference_lines(
  ax, results: Results, theme: Theme, unnamed: tuple = (), points: Sequence = ()
) -> tuple:
  """Draws the n-gram references in range; returns their names. `unnamed` get no label.

  points: (x, variant) that a label keeps away from: it stands at the end with more room.
  """
  from matplotlib.patheffects import withStroke

  low, high = ax.get_ylim()
  found = {n: results.references.get(n) for n in ('unigram', 'bigram')}
  found = {n: value for n, value in found.items() if value is not None and low < value < high}
  for name, value in found.items():
    ax.axhline(value, color=theme.faint, lw=1, ls=(0, (5, 3)), zorder=1)
    if name not in unnamed:
      halo = [withStroke(linewidth=2.5, foreground=theme.paper)]
      near = [ax.transAxes.inverted().transform(ax.transData.transform((x, v.loss.mean)))[0]
              for x, v in points if abs(v.loss.mean - value) < 0.15 * (high - low)]  # fmt: skip
      side = _freest(near)
      ax.annotate(f'{name} count {formats.loss(value, 2)}', (side, value), (4 - 8 * side, 2),
                  xycoords=ax.get_yaxis_transform(), ha=('left', 'center', 'right')[int(2 * side)],
                  textcoords='offset points', size=8.5, color=theme.faint, zorder=6,
                  path_effects=halo)  # fmt: skip
  return tuple(found)


def _freest(near: list[float]) -> float:
  """1, 0 or .5, the share of the axis where a label is furthest from points at these shares."""
  if not near:
    return 1.0
  away = {at: min(abs(x - centre) for x in near) for at, centre in _PLACES.items()}
  return next((at for at, room in away.items() if room > _LABEL), max(away, key=away.get))


def number_axis(ax, values: dict[float, str], name: str) -> None:
  """Makes x an axis of these values, logarithmic where they are far apart, each with its text.

  Where two texts would run into each other the second is left out.
  """
  xs = np.array(sorted(values))
  logarithmic = xs[0] > 0 and xs[-1] >= _DECADES * xs[0]
  if logarithmic:
    ax.set_xscale('log')
  room = 0.04 * (np.log(xs[-1] / xs[0]) if logarithmic else xs[-1] - xs[0]) or 0.5
  if logarithmic:
    ax.set_xlim(xs[0] / np.exp(room), xs[-1] * np.exp(room))
  else:
    ax.set_xlim(xs[0] - room, xs[-1] + room)
  places = np.log(xs) if logarithmic else xs
  places = (places - places[0]) / ((places[-1] - places[0]) or 1)
  texts, free = [], 0.0
  width = ax.get_position().width * ax.figure.get_size_inches()[0]
  for x, place in zip(xs, places, strict=True):
    half = (0.04 * len(values[x]) + 0.06) / width  # of the text, as a share of the axis
    texts.append(values[x] if place - half >= free or not texts else '')
    free = place + half if texts[-1] else free
  ax.set_xticks(xs, texts)
  ax.minorticks_off()
  ax.set_xlabel(f'{name}{" (logarithmic)" if logarithmic else ""}')


def labels_abreast(labels: list[str], width: float) -> int:
  """How many entries of a legend stand side by side in so many inches."""
  return max(1, int(width / (0.6 + 0.075 * max(map(len, labels)))))


def legend(figure, labels: list[str], looks: list[Look], abreast: int) -> None:
  """Above all panels, in as many columns."""
  from matplotlib.lines import Line2D

  both = zip(labels, looks, strict=True)
  handles = [Line2D([], [], color=k.colour, ls=k.dash, lw=2, label=name) for name, k in both]
  figure.legend(handles=handles, loc='outside upper left', ncols=min(abreast, len(handles)),
                frameon=False, fontsize=9, handlelength=1.6, columnspacing=1.4)  # fmt: skip
