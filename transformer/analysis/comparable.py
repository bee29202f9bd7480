"""Which groups of cells may be compared: those that are equal in all but what is compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

from transformer.analysis import formats
from transformer.analysis.folder import Folder
from transformer.analysis.results import Cell, Results, plain_setting
from transformer.config import SETTINGS, Config, idle, result_settings
from transformer.errors import UserError

_WIDTHS = ('ffn.d_ff', 'ffn.ratio')  # one tells the other
_OF_WIDTH = ('model.head_dim', 'optim.learning_rate')  # follow model.d_model where left open


class Comparison:
  """What may differ between groups, by what the folders compare and hold equal."""

  def __init__(self, folders: Sequence[Folder], by: tuple[str, ...], settings: bool):
    """settings: whether cells' settings tell groups apart; False: as the experiment made them."""
    self._folders = {f.path: f for f in folders}
    self._bases = {f.path: _settings(f.base, f.path) if f.base else {} for f in folders}
    self._by, self._settings = by, settings

  def obstacle(self, ours: Sequence[Cell], theirs: Sequence[Cell]) -> str:
    """'train.steps differs' where two groups hold other mixes of cells at a seed; '' if alike."""
    for seed in sorted({c.seed for c in ours} & {c.seed for c in theirs}):
      pair = [[c for c in group if c.seed == seed] for group in (ours, theirs)]
      if any(c.state != 'done' for group in pair for c in group):
        continue
      names = self._differing(*pair) if self._settings else []
      if names:
        return f'{formats.listing(names, most=4)} differ{"s" if len(names) == 1 else ""}'
      if found := self._data(*pair):
        return found
    return ''

  def _differing(self, ours: list[Cell], theirs: list[Cell]) -> list[str]:
    """Settings of which the two groups hold other shares, sorted."""
    told = tuple(f'{path}.' for path in self._by)
    sides = [[self._of(c) for c in side] for side in (ours, theirs)]
    absent = set().union(*(_absent(c) for c in (*ours, *theirs)))
    names = {
      n
      for side in sides
      for found in side
      for n in found
      if n not in self._by and n not in absent and not n.startswith(told)
    }
    if set(_WIDTHS) & set(self._by):
      names -= set(_WIDTHS)
    if 'model.d_model' in self._by:
      names -= set(_OF_WIDTH)
    unlike = {n for n in names if _unlike(*([s.get(n) for s in side] for side in sides))}
    alike = set(_WIDTHS) - unlike
    if any(s.get(n) is not None for n in alike for side in sides for s in side):
      unlike -= set(_WIDTHS)  # of another d_model only one of the two can be equal
    if not unlike:  # the same values of each, but other combinations
      kept = sorted(names - set(_WIDTHS))
      if _unlike(*([[s.get(n) for n in kept] for s in side] for side in sides)):
        both = [s for side in sides for s in side]
        unlike = {n for n in kept if len({repr(s.get(n)) for s in both}) > 1}
    return sorted(unlike)

  def _of(self, cell: Cell) -> dict:
    """What the cell's experiment was asked for, at this cell's value of what it varies.

    What a budget or another width moved is left out by that: it follows from these.
    """
    try:
      own = cell.settings
    except UserError:
      own = _as_written(cell.config)
    made = self._folders.get(cell.folder.parent.parent)
    if not (made and made.base):
      return own
    varied = tuple(v.strip() for v in made.get('variable').split(',') if v.strip())

    def told(path: str) -> bool:
      return path in varied or path.startswith(tuple(f'{v}.' for v in varied))

    found = dict(self._bases[made.path])
    found |= {path: plain_setting(made.base, path) for path in _WIDTHS}
    found = {path: value for path, value in found.items() if not told(path)}
    return found | {path: value for path, value in own.items() if told(path)}

  def _data(self, ours: list[Cell], theirs: list[Cell]) -> str:
    """Whether they were trained and judged on other data, however that is cut into tokens."""
    if _alike_where_known([c.result.get('data') for c in g] for g in (ours, theirs)):
      return ''
    cuts = [[_cut(c) for c in group] for group in (ours, theirs)]
    if not _unlike(*cuts) and not any(path.startswith('data.') for path in self._by):
      return 'the data differ'
    alike = _alike_where_known([c.text for c in g] for g in (ours, theirs))
    return '' if alike else 'the held-out text differs'


def _settings(config: dict, origin: Path) -> dict:
  """What changes a result, by flag name; as it is written where this code cannot tell."""
  try:
    return result_settings(Config.from_json(config, str(origin)), ('seed',))
  except UserError:
    return _as_written(config)


def _as_written(config: dict) -> dict:
  kinds = {path: s.metadata['kind'] for path, s in SETTINGS.items() if path != 'seed'}
  found = {path: plain_setting(config, path) for path, kind in kinds.items() if kind != 'free'}
  return {path: value for path, value in found.items() if value is not None}


def _absent(cell: Cell) -> set[str]:
  """Settings of parts that the cell's model lacks."""
  try:
    return set(idle(cell.known))
  except UserError:
    return set()


def _cut(cell: Cell) -> Hashable:
  """How text becomes rows of tokens."""
  tokenizer = cell.tokenizer or plain_setting(cell.config, 'data.tokenizer')
  return tokenizer, plain_setting(cell.config, 'data.seq_len')


def _alike_where_known(groups: Iterable[list[Hashable]]) -> bool:
  ours, theirs = groups
  return not all((*ours, *theirs)) or not _unlike(ours, theirs)


def _unlike(ours: list, theirs: list) -> bool:
  """Whether values are there in other shares."""
  left, right = (Counter(map(repr, values)) for values in (ours, theirs))
  return any(left[k] * len(theirs) != right[k] * len(ours) for k in left | right)


def sentences(results: Results) -> list[str]:
  """What was not compared and why; what mixes versions of the code."""
  found: dict[str, list[str]] = {}
  for v in results.variants:
    if v.difference and v.difference.obstacle:
      found.setdefault(v.difference.obstacle, []).append(f'`{results.label(v.name)}`')
  base = f'`{results.label(results.baseline)}`'
  told = []
  for why, names in found.items():
    who = formats.listing(names, most=8)
    told.append(
      f'{who} {"is" if len(names) == 1 else "are"} not compared with {base}: {why} between their '
      'cells.'
    )
  return [*told, *_code(results)]


def _code(results: Results) -> list[str]:
  mixing = [f'`{results.label(v.name)}`' for v in results.variants if _versions(v.done)]
  if mixing:
    verb = 'mixes' if len(mixing) == 1 else 'mix'
    return [
      f'{formats.listing(mixing, most=8)} {verb} cells of different versions of the code: a '
      'difference may be due to that.'
    ]
  if _versions(results.done):
    return ['Variants come from different versions of the code: a difference may be due to that.']
  return []


def _versions(cells: Iterable[Cell]) -> bool:
  """Whether cells that use the same files of users were made by other code."""
  found: dict[tuple, set[str]] = {}
  for c in cells:
    if c.result.get('code'):
      files = tuple(sorted(c.provenance.get('plugins') or ()))
      found.setdefault(files, set()).add(str(c.result['code']))
  return any(len(digests) > 1 for digests in found.values())
