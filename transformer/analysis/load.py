"""Run folders -> Results: one as its experiment compares it, or several, regrouped by settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformer import plugin
from transformer.analysis import folder, formats, grouping, stats
from transformer.analysis.comparable import Comparison
from transformer.analysis.folder import Folder
from transformer.analysis.measures import BITS, NATS, Measure
from transformer.analysis.results import Cell, Results, Variant, losses, measure
from transformer.errors import UserError, nearest

_BETTER = (
  'done',
  'unfinished',
  'pruned',
  'failed',
  'waiting',
)  # of two copies of a cell the first counts


def load(
  workdirs: str | Path | Sequence[str | Path],
  by: str = '',
  baseline: str = '',
  out: str | Path | None = None,
) -> Results:
  """Reads runs/<experiment>/, one or several, also while they run.

  by: settings whose values name the variants, 'ffn.activation,optim.learning_rate'; '': as the
  experiment names them, those of a sweep by what it varies. baseline: a variant; '': the
  experiment's own. out: the report's folder; None: the only workdir, or merged/ beside the first of
  several.
  Raises UserError for folders that hold no experiment, or do not go together.
  """
  paths = _paths(workdirs)
  notes: list[str] = []
  folders = [folder.read(path, notes) for path in paths]
  by = by or (folders[0].get('by') if len(folders) == 1 else '')
  compared = _regrouped(by, folders, notes) if by else _as_asked(folders, notes)
  cells, match = compared.cells, _match(folders)
  merged = bool(by) or len(folders) > 1
  mixed, besides = grouping.differing(cells, compared.by, match) if merged else ((), ())
  judged = measure(cells)
  references = _references(folders, notes) if judged is not BITS else {}
  notes += [*_mixed(mixed), *folder.mixtures(cells), *folder.lossy(cells, judged)]
  told = _told(folders)
  if by:
    told['question'] = f'Held-out loss by {formats.listing(list(compared.by))}'
  return Results(
    **told,
    **_outcome(
      compared,
      _baseline(baseline, compared, merged),
      judged,
      Comparison(folders, compared.by, settings=merged),
    ),
    out=Path(out) if out else paths[0] if len(paths) == 1 else paths[0].parent / 'merged',
    regrouped=bool(by),
    match=match,
    references=references,
    searched=folders[0].searched if len(folders) == 1 else {},
    mixed=mixed,
    besides=besides,
    notes=tuple(notes),
  )


@dataclass(frozen=True)
class _Compared:
  """The cells, each named by its variant."""

  by: tuple[str, ...]  # the settings that tell variants apart; () for single runs
  cells: list[Cell]
  values: dict[str, tuple[str, ...]]  # variant -> its values of them, as text
  baseline: str  # where none is asked for; may name no variant


def _as_asked(folders: list[Folder], notes: list[str]) -> _Compared:
  """As the experiments compare them, which have to vary the same setting."""
  cells = [cell for f in folders for cell in f.cells]
  if len(folders) > 1:
    _load_plugins(cells, notes)
  names = _variable(folders)
  if len(folders) > 1:
    cells = _once(cells, notes)
    _refuse_twice(cells, folders)
  values = {c.variant: (c.variant,) if names else () for c in cells}
  return _Compared(names, cells, values, folders[0].get('baseline'))


def _regrouped(by: str, folders: list[Folder], notes: list[str]) -> _Compared:
  """By the values of settings; the baseline is the group of the first experiment's base."""
  cells = [cell for f in folders for cell in f.cells]
  _load_plugins(cells, notes)
  names = grouping.parse(by)
  groups = grouping.regroup(cells, names, notes)
  if not groups.cells:
    where = _listed(folders)
    raise UserError(f'--by={by}: no cell in {where} has a config.json that tells it')
  first = folders[0]
  try:
    own = grouping.values(first.base, names, str(first.path / 'resolved.json'))
  except UserError:  # of other code
    own = ()
  return _Compared(names, _once(groups.cells, notes), groups.values, groups.names.get(own, ''))


def _told(folders: list[Folder]) -> dict[str, Any]:
  """What the experiments themselves say, where they agree."""
  first = folders[0]
  return dict(
    workdirs=tuple(f.path for f in folders),
    name=' + '.join(dict.fromkeys(f.name for f in folders)),
    question=_same(folders, 'question'),
    absorb=_same(folders, 'absorb'),
    command=first.get('command') if len(folders) == 1 else '',
    base=first.base,
  )


def _outcome(
  compared: _Compared, baseline: str, judged: Measure, comparison: Comparison
) -> dict[str, Any]:
  """The variants, and how they differ from the baseline."""
  groups: dict[str, list[Cell]] = {}
  for cell in compared.cells:
    groups.setdefault(cell.variant, []).append(cell)
  found = {name: losses(group, judged) for name, group in groups.items()}
  others = [name for name in groups if name != baseline]
  base = groups[baseline or next(iter(groups))]
  obstacles = {name: comparison.obstacle(group, base) for name, group in groups.items()}
  alike = [name for name in others if not obstacles[name]]
  differences = stats.compare(found, [(name, baseline) for name in alike] if baseline else [])
  if baseline:
    differences |= {
      (name, baseline): stats.not_compared(name, baseline, obstacles[name])
      for name in others
      if obstacles[name]
    }
  ahead = {name for name, group in groups.items() if any(c.looks_ahead for c in group)}
  differences = {
    pair: dataclasses.replace(d, ahead=tuple(ahead & set(pair))) for pair, d in differences.items()
  }
  return dict(
    by=compared.by,
    baseline=baseline,
    cells=tuple(compared.cells),
    variants=tuple(
      Variant(name, compared.values[name], tuple(group), differences.get((name, baseline)), judged)
      for name, group in groups.items()
    ),
    leaders=stats.indistinguishable(found, [name for name in alike if name not in ahead]),
    outliers=stats.outliers(found, judged.far),
    measure=judged,
  )


def _paths(workdirs: str | Path | Sequence[str | Path]) -> tuple[Path, ...]:
  """Each folder once."""
  one = isinstance(workdirs, (str, Path))
  paths = [Path(w) for w in ([workdirs] if one else workdirs) if str(w)]
  if not paths:
    raise UserError('--workdir=: is empty; name folders, as in --workdir=runs/a,runs/b')
  found: dict[Path, Path] = {}
  for path in paths:
    found.setdefault(path.resolve(), path)
  return tuple(found.values())


def _load_plugins(cells: list[Cell], notes: list[str]) -> None:
  """Makes known the variants of the users' own files; a file that is gone is noted."""
  for files in sorted({c.config.get('plugin') or '' for c in cells} - {''}):
    try:
      plugin.load(files)
    except UserError as error:
      notes.append(str(error))


def _listed(folders: list[Folder]) -> str:
  return formats.listing([str(f.path) for f in folders])


def _variable(folders: list[Folder]) -> tuple[str, ...]:
  """What all folders vary. Raises UserError where that is not one setting."""
  variables = {f.get('variable') for f in folders}
  if len(variables) > 1:
    told = [f'{f.path} varies {f.get("variable") or "nothing"}' for f in folders]
    raise UserError(
      f'--workdir: {formats.listing(told)}; say by --by what to compare, as in '
      f'--by={",".join(sorted(variables - {""}))}'
    )
  return tuple(variables - {''})


def _once(cells: list[Cell], notes: list[str]) -> list[Cell]:
  """Drops copies: cells of one variant whose folders end in the same hash of their settings."""
  found: dict[tuple[str, str], Cell] = {}
  copies: list[tuple[Cell, Cell]] = []
  for cell in cells:
    key = cell.variant, cell.folder.name.rpartition('-')[2]
    other = found.setdefault(key, cell)
    if other is not cell:
      kept, dropped = sorted((other, cell), key=lambda c: _BETTER.index(c.state))
      found[key] = kept
      copies.append((kept, dropped))
  if copies:
    first = f'`{copies[0][0].name}`' + (f' and {len(copies) - 1} more' if len(copies) > 1 else '')
    done = [(a.result, b.result) for a, b in copies if a.state == b.state == 'done']
    losses = [a[NATS.key] - b[NATS.key] for a, b in done]
    apart = max(map(abs, losses), default=0.0)
    differ = f', though losses differ by up to {formats.loss(apart, 4)} nats' if apart else ''
    notes.append(f'there more than once, counted once: {first}{differ}')
  return list(found.values())


def _refuse_twice(cells: list[Cell], folders: list[Folder]) -> None:
  """One seed of one variant in two folders, with other settings, is no pair and no mean."""
  found: dict[tuple[str, int], Cell] = {}
  for cell in cells:
    other = found.setdefault((cell.variant, cell.seed), cell)
    if other is not cell:
      differ, _ = grouping.differing([other, cell], (), '')
      what = formats.listing(list(differ)) or 'something'
      raise UserError(
        f'--workdir: {_listed(folders)} both hold {cell.variant} with seed {cell.seed}, but {what} '
        f'differs; compare by it, as in --by={",".join(differ) or "optim.learning_rate"}'
      )


def _match(folders: list[Folder]) -> str:
  """The budget that all cells have in common, 'none' where folders have their own."""
  budgets = {(f.get('match'), f.asked.get('budget')) for f in folders}
  return folders[0].get('match') if len(budgets) == 1 else 'none'


def _same(folders: list[Folder], key: str) -> str:
  """A text that all folders share, '' if they do not."""
  found = {f.get(key) for f in folders}
  return found.pop() if len(found) == 1 else ''


def _baseline(asked: str, compared: _Compared, merged: bool) -> str:
  """The variant compared with: as asked, else the experiment's own, else the first if any must."""
  names = list(dict.fromkeys(c.variant for c in compared.cells))
  if asked:
    plain = {grouping.same_text(name): name for name in names}
    if (found := plain.get(grouping.same_text(asked))) is None:
      raise UserError(f'--baseline={asked}: no such group{nearest(asked, map(repr, names))}')
    return found
  if compared.baseline in names:
    return compared.baseline
  return names[0] if merged and len(names) > 1 else ''


def _references(folders: list[Folder], notes: list[str]) -> dict:
  """The n-gram losses where all folders have the same."""
  told = [{k: v for k, v in f.references.items() if k != 'key'} for f in folders]
  if all(t == told[0] for t in told):
    return folders[0].references
  notes.append('the folders have other n-gram losses, so none are shown')
  return {}


def _mixed(mixed: tuple[str, ...]) -> list[str]:
  if not mixed:
    return []
  names = formats.listing([f'`{name}`' for name in mixed])
  return [
    f'within a group, cells also differ in {names}; groups compare only where each holds the same '
    'mix: name it in --by to keep them apart'
  ]
