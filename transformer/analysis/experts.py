"""What each expert likes, as the trainer wrote it: of one seed of each variant with experts."""

from __future__ import annotations

import json
from dataclasses import dataclass

from transformer.analysis.inside import number
from transformer.analysis.results import Cell, Results
from transformer.data.tokenizers import visible

CAPTION = (
  'What each expert likes: tokens by lift, their share among what came to the expert over their '
  'share in the text; of held-out tokens seen at least {least} times, after the last step, by the '
  'first finished seed.'
)
HEADINGS = ('layer', 'expert', 'share of load', 'lift', 'tokens')
_VARIANTS, _LAYERS, _EXPERTS = 8, 4, 16  # shown


@dataclass(frozen=True)
class Likes:
  """Of one variant. rows: as of HEADINGS, the tokens each on its own; left: experts not shown."""

  label: str
  seed: int
  rows: tuple[tuple[str, str, str, str, tuple[str, ...]], ...]
  left: int


def likes(results: Results) -> list[Likes]:
  """Variants whose first finished seed tells them, the best first; of many experts some."""
  found = []
  for variant in results.ranked:
    cell = min(variant.done, key=lambda c: c.seed, default=None)
    layers = _read(cell).get('layers') if cell else None
    if layers and len(found) < _VARIANTS:
      found.append(_likes(results.label(variant.name), cell.seed, layers))
  return found


def title(likes: Likes) -> str:
  left = f'; {likes.left} more experts in its experts.json' if likes.left else ''
  return f'{likes.label}, seed {likes.seed}{left}'


def caption(results: Results) -> str:
  least = {_read(c).get('least') for c in results.done} - {None}
  return CAPTION.format(least='/'.join(map(str, sorted(least))))


def _likes(label: str, seed: int, layers: list[dict]) -> Likes:
  shown = layers[:: -(-len(layers) // _LAYERS)]
  rows = []
  for layer in shown:
    most = sorted(enumerate(layer['experts']), key=lambda pair: -pair[1]['share'])[:_EXPERTS]
    rows += [_row(layer['layer'], i, expert) for i, expert in sorted(most, key=lambda p: p[0])]
  return Likes(label, seed, tuple(rows), sum(len(x['experts']) for x in layers) - len(rows))


def _row(layer: int, i: int, expert: dict) -> tuple:
  liked = expert['likes']
  lift = f'{number(liked[0]["lift"])} ×' if liked else ''
  return str(layer), str(i), f'{100 * expert["share"]:.1f} %', lift, tuple(map(_text, liked))


def _text(liked: dict) -> str:
  """A token as it can be seen; by its id where it is no text of its own."""
  text = liked.get('text') or ''
  return visible(text) if text and '\ufffd' not in text else f'#{liked["id"]}'


def _read(cell: Cell) -> dict:
  """What a cell says its experts like; {} if nothing that can be read."""
  try:
    return json.loads((cell.folder / 'experts.json').read_text(encoding='utf-8'))
  except (OSError, ValueError):
    return {}
