"""Reads an experiment's folder, finished or not, into one plain object for tables and plots."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from transformer.analysis import stats
from transformer.errors import UserError


@dataclass(frozen=True)
class Cell:
  """One run: what was asked, how far it came, what it found."""

  name: str
  variant: str
  seed: int
  folder: Path
  state: str  # done, failed, unfinished (claimed or started), waiting
  asked: dict = field(repr=False)  # its entry in experiment.json
  config: dict = field(repr=False)
  provenance: dict = field(repr=False)
  result: dict = field(repr=False)  # done.json
  failure: dict = field(repr=False)  # failed.json
  progress: dict = field(repr=False)  # heartbeat.json
  rows: tuple[dict, ...] = field(repr=False)  # metrics.jsonl

  @property
  def loss(self) -> float:
    """Held-out nats per token of a finished cell."""
    return float(self.result['eval/loss'])

  def series(self, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric; rows without it or where it is not finite are left out."""
    found = [(r['step'], r[key]) for r in self.rows if is_number(r.get(key)) and 'step' in r]
    return [step for step, _ in found], [float(value) for _, value in found]


@dataclass(frozen=True)
class Variant:
  """All seeds of one value of the variable."""

  name: str
  cells: tuple[Cell, ...]
  difference: stats.Difference | None  # to the baseline

  @cached_property
  def done(self) -> tuple[Cell, ...]:
    return tuple(c for c in self.cells if c.state == 'done')

  @cached_property
  def loss(self) -> stats.Sample:
    return stats.sample(c.loss for c in self.done)

  def sample(self, key: str) -> stats.Sample:
    """Mean and interval over the finished seeds of a number of done.json."""
    found = (c.result.get(key) for c in self.done)
    return stats.sample(v for v in found if is_number(v))

  def asked(self, key: str) -> Any:
    """'params', 'd_ff', 'd_model' or 'flops_per_token' of this variant; None if not written."""
    return self.cells[0].asked.get(key)


@dataclass(frozen=True)
class Results:
  """An experiment as its folder tells it now."""

  workdir: Path
  name: str
  question: str
  variable: str
  baseline: str  # '' where nothing is compared
  match: str  # params, flops, none or ''
  command: str
  base: dict = field(repr=False)  # resolved base config, nested
  cells: tuple[Cell, ...] = field(repr=False)
  variants: tuple[Variant, ...] = field(repr=False)  # in the order of the experiment
  references: dict  # unigram, bigram, …
  leaders: tuple[str, ...]  # the best variant besides the baseline and those not told apart from it
  outliers: dict[tuple[str, int], float]
  notes: tuple[str, ...]  # files that could not be read, mixtures of code or data

  @cached_property
  def ranked(self) -> tuple[Variant, ...]:
    """Numeric variants by value, others by held-out loss; those without a result last."""
    if self.numeric:
      return tuple(sorted(self.variants, key=lambda v: float(v.name)))
    return tuple(sorted(self.variants, key=lambda v: v.loss.mean if v.done else math.inf))

  @cached_property
  def numeric(self) -> bool:
    """Whether every variant is named by a number, so that it can be an axis."""
    return len(self.variants) > 1 and all(_float(v.name) is not None for v in self.variants)

  def label(self, variant: str) -> str:
    """'ratio 4' for a bare number, else the variant's own name."""
    leaf = self.variable.rpartition('.')[2]
    return f'{leaf} {variant}'.strip() if self.numeric else variant

  def by_state(self, *states: str) -> tuple[Cell, ...]:
    return tuple(c for c in self.cells if c.state in states)

  @property
  def done(self) -> tuple[Cell, ...]:
    return self.by_state('done')

  def setting(self, path: str) -> Any:
    """A setting of the resolved base config by its flag name, None if absent."""
    section, _, name = path.rpartition('.')
    return (self.base.get(section) or {}).get(name) if section else self.base.get(name)

  def settings(self, path: str) -> tuple:
    """The distinct values a setting has in the cells' configs (the base's where none started)."""
    section, _, name = path.rpartition('.')
    found = [(c.config.get(section) or {}).get(name) for c in self.cells if c.config]
    found = [v for v in found if v is not None]
    if not found and self.setting(path) is not None:
      found = [self.setting(path)]
    return tuple(sorted(set(found), key=lambda v: (str(type(v)), v)))

  def provenance(self, key: str) -> tuple[str, ...]:
    """The distinct values of a provenance entry over the cells that have one, as text."""
    found = (c.provenance.get(key) for c in self.cells)
    return tuple(sorted({_text(v) for v in found if v not in (None, '', {})}))


def load(workdir: str | Path) -> Results:
  """Reads runs/<experiment>/, also while it runs.

  Raises UserError naming the file where experiment.json is missing or not what it should be.
  A cell's file that cannot be read is left out and named in `notes`.
  """
  workdir = Path(workdir)
  asked = _read_experiment(workdir / 'experiment.json')
  notes: list[str] = []
  cells = tuple(_read_cell(workdir, entry, notes) for entry in asked['cells'])
  base = _read_json(workdir / 'resolved.json', notes) or asked.get('base') or {}
  losses: dict[str, dict[int, float]] = {c.variant: {} for c in cells}
  for c in cells:
    if c.state == 'done':
      losses[c.variant][c.seed] = c.loss
  baseline = asked.get('baseline') or ''
  others = [name for name in losses if name != baseline]
  against = [(name, baseline) for name in others] if baseline in losses else []
  differences = stats.compare(losses, against)
  return Results(
    workdir=workdir,
    name=asked.get('name') or workdir.name,
    question=asked.get('question') or '',
    variable=asked.get('variable') or '',
    baseline=baseline if baseline in losses else '',
    match=asked.get('match') or '',
    command=asked.get('command') or '',
    base=base,
    cells=cells,
    variants=tuple(
      Variant(name, tuple(c for c in cells if c.variant == name), differences.get((name, baseline)))
      for name in losses
    ),
    references=_read_json(workdir / 'references.json', notes),
    leaders=stats.indistinguishable(losses, others),
    outliers=stats.outliers(losses),
    notes=(*notes, *_mixtures(cells)),
  )


def _read_experiment(path: Path) -> dict:
  wrong = f'{path}: {{}}; give the folder that an experiment wrote, runs/<experiment>'
  try:
    asked = json.loads(path.read_text())
  except FileNotFoundError:
    raise UserError(wrong.format('no such file')) from None
  except (OSError, ValueError) as error:
    raise UserError(wrong.format(f'cannot be read ({error})')) from None
  entries = asked.get('cells') if isinstance(asked, dict) else None
  if not isinstance(entries, list) or not entries:
    raise UserError(wrong.format('lists no cells'))
  for entry in entries:
    missing = {'name', 'variant', 'seed', 'folder'} - set(entry if isinstance(entry, dict) else ())
    if missing:
      raise UserError(wrong.format(f'a cell without {", ".join(sorted(missing))}'))
  return asked


def _read_cell(workdir: Path, entry: dict, notes: list[str]) -> Cell:
  folder = workdir / 'cells' / str(entry['folder'])
  read = {
    name: _read_json(folder / f'{name}.json', notes)
    for name in ('config', 'provenance', 'done', 'failed', 'heartbeat')
  }
  rows = _read_rows(folder / 'metrics.jsonl', notes)
  done, failed = read['done'], read['failed']
  if done and not is_number(done.get('eval/loss')):
    failed = {'cause': 'non-finite', 'message': f'held-out loss is {done.get("eval/loss")}'}
    done = {}
  started = read['heartbeat'] or rows or (folder / 'claim.json').exists()
  state = 'done' if done else 'failed' if failed else 'unfinished' if started else 'waiting'
  return Cell(
    name=str(entry['name']),
    variant=str(entry['variant']),
    seed=int(entry['seed']),
    folder=folder,
    state=state,
    asked=entry,
    config=read['config'],
    provenance=read['provenance'],
    result=done,
    failure=failed if state == 'failed' else {},
    progress=read['heartbeat'],
    rows=rows,
  )


def _read_json(path: Path, notes: list[str]) -> dict:
  """The object in a file; {} where it is absent, or unreadable, which is noted."""
  try:
    found = json.loads(path.read_text())
  except FileNotFoundError:
    return {}
  except (OSError, ValueError) as error:
    notes.append(f'{path} left out: {error}')
    return {}
  return found if isinstance(found, dict) else {}


def _read_rows(path: Path, notes: list[str]) -> tuple[dict, ...]:
  """Rows of metrics.jsonl; the last line may be half written and is dropped silently then."""
  try:
    lines = path.read_text(errors='replace').splitlines()
  except OSError:
    return ()
  rows = []
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
    except ValueError:
      if number < len(lines):
        notes.append(f'{path} line {number} left out: not JSON')
      continue
    if isinstance(row, dict):
      rows.append(row)
  return tuple(rows)


def _mixtures(cells: Iterable[Cell]) -> list[str]:
  """Finished cells that other code or other data made are compared only with a warning."""
  notes = []
  for key, what in (('code', 'versions of the code'), ('data', 'versions of the data')):
    found: dict[str, int] = {}
    for c in cells:
      if c.result.get(key):
        found[str(c.result[key])] = found.get(str(c.result[key]), 0) + 1
    if len(found) > 1:
      parts = ', '.join(f'{count} by {digest[:8]}' for digest, count in sorted(found.items()))
      notes.append(f'finished cells come from {len(found)} {what} ({parts}); compare with care')
  return notes


def is_number(value: Any) -> bool:
  """A finite int or float."""
  return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _float(text: str) -> float | None:
  try:
    value = float(text)
  except ValueError:
    return None
  return value if math.isfinite(value) else None


def _text(value: Any) -> str:
  if isinstance(value, dict):
    return ', '.join(f'{k} {v}' for k, v in value.items())
  return str(value)
