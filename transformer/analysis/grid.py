"""Two settings, one of them a number: a line of losses over it for each value of the other."""

from __future__ import annotations

from dataclasses import dataclass

from transformer.analysis import formats
from transformer.analysis.results import Results, Variant, as_float


@dataclass(frozen=True)
class Line:
  """One value of the other setting: its variants by the numeric one."""

  name: str
  points: tuple[tuple[float, Variant], ...]  # ascending

  def holds(self, variant: str) -> bool:
    return any(v.name == variant for _, v in self.points)

  @property
  def shown(self) -> list[tuple[float, Variant]]:
    """Those with a loss."""
    return [(x, v) for x, v in self.points if v.loss.n]

  @property
  def best(self) -> tuple[float, Variant]:
    """The lowest mean loss; there is one where `shown` is not empty."""
    return min(self.shown, key=lambda point: point[1].loss.mean)

  @property
  def at_edge(self) -> bool:
    """Whether the best is the least or largest value tried, so that a better one may lie beyond."""
    return len(self.points) > 1 and self.best[0] in (self.points[0][0], self.points[-1][0])


@dataclass(frozen=True)
class Grid:
  """x: the numeric setting, other: the one told by lines; lines in the order of the experiment."""

  x: str
  other: str
  lines: tuple[Line, ...]

  @property
  def finished(self) -> list[Line]:
    """Lines with a loss, the best first."""
    shown = [line for line in self.lines if line.shown]
    return sorted(shown, key=lambda line: line.best[1].loss.mean)

  @property
  def xs(self) -> list[float]:
    """All values of x, ascending."""
    return sorted({x for line in self.lines for x, _ in line.points})


def grid(results: Results) -> Grid | None:
  """The grid that two settings span; None where neither is a number with several values."""
  if len(results.by) != 2:
    return None
  values = [{v.values[i] for v in results.variants} for i in (0, 1)]
  axes = [i for i in (1, 0) if len(values[i]) > 1 and None not in map(as_float, values[i])]
  if not axes:
    return None
  at = max(axes, key=lambda i: len(values[i]))
  lines: dict[str, list[tuple[float, Variant]]] = {}
  for v in results.variants:
    lines.setdefault(v.values[1 - at], []).append((float(v.values[at]), v))
  found = (
    Line(name + ps[0][1].mark, tuple(sorted(ps, key=lambda p: p[0]))) for name, ps in lines.items()
  )
  return Grid(results.by[at], results.by[1 - at], tuple(found))


def selected(results: Results, most: int) -> list[Variant]:
  """The variants a picture of lines has room for: of a grid the best of each line, else the best.

  The baseline, or the best of its line, is among them. In the order of `results.ranked`.
  """
  base = results.baseline
  if (g := grid(results)) and g.finished:
    keep = [line.best[1].name for line in g.finished]
    base = next((line.best[1].name for line in g.finished if line.holds(base)), base)
  elif len(results.variants) <= most:
    return list(results.ranked)
  else:
    keep = [v.name for v in sorted(results.variants, key=lambda v: (not v.loss.n, v.loss.mean))]
  names = keep[:most] if base in keep[:most] else [*keep[: most - 1], base]
  return [v for v in results.ranked if v.name in names]


def sentences(results: Results) -> list[str]:
  """The best of each line, and whether a better one may lie outside of what was tried."""
  g = grid(results)
  if not g or not g.finished:
    return []
  heading, at = results.heading(g.x), results.by.index(g.x)
  found = [
    f'`{line.name}` {formats.with_interval(v.loss)} at {v.values[at]}'
    for line, (_, v) in ((line, line.best) for line in g.finished)
  ]
  text = [
    f'Each at its best {heading}, picked on this same held-out text: '
    f'{formats.listing(found, most=8)}.'
  ]
  edge = [f'`{line.name}`' for line in g.finished if line.at_edge]
  if edge:
    text.append(
      f'The best {heading} of {formats.listing(edge, most=8)} is the least or the largest tried: '
      'a better one may lie beyond.'
    )
  return text
