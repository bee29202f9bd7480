"""A few held-out sources, their references, and what each variant made of them."""

from __future__ import annotations

import json
from dataclasses import dataclass

from transformer.analysis.results import Cell, Results

SHOWN = 6
CAPTION = (
  'Held-out sources, the text that belongs to each, and what the first finished seed of each '
  'variant makes of it.'
)
_VARIANTS = 8
_LINES, _WIDTH = 16, 100  # of a source, at most


@dataclass(frozen=True)
class Sample:
  """said: (label of a variant, its text), the best variant first."""

  source: str
  reference: str
  said: tuple[tuple[str, str], ...]


def samples(results: Results, most: int = SHOWN) -> list[Sample]:
  """Sources that all variants with samples decoded, evenly spread, by their first finished seed."""
  told = {}
  for variant in results.ranked:
    cells = sorted(variant.done, key=lambda c: c.seed)
    if cells and len(told) < _VARIANTS and (found := _read(cells[0]).get('samples')):
      label = results.label(variant.name)
      told[label] = {(s['source'], s['reference']): s['hypothesis'] for s in found}
  if not told:
    return []
  first, *others = told.values()
  common = [pair for pair in first if all(pair in other for other in others)]
  chosen = common[:: max(1, len(common) // most)][:most]
  return [
    Sample(*pair, tuple((label, said[pair]) for label, said in told.items())) for pair in chosen
  ]


def facts(results: Results) -> dict:
  """How texts were decoded and scored, of the first cell that says so; {} if none does."""
  found = (_read(cell) for cell in results.done)
  return next(({k: v for k, v in f.items() if k != 'samples'} for f in found if f), {})


def clipped(source: str) -> str:
  """As much of a source as a page has room for."""
  lines = source.split('\n')
  more = [f'… {len(lines) - _LINES} more lines'] if len(lines) > _LINES + 1 else []
  shown = lines[:_LINES] if more else lines
  cut = [line if len(line) <= _WIDTH else f'{line[: _WIDTH - 1]}…' for line in shown]
  return '\n'.join(cut + more)


def _read(cell: Cell) -> dict:
  """What a cell says it decoded; {} if nothing that can be read."""
  try:
    return json.loads((cell.folder / 'samples.json').read_text(encoding='utf-8'))
  except (OSError, ValueError):
    return {}
