"""Finished, running and failed cells as one plain object for tables and plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from transformer.analysis import stats
from transformer.analysis.measures import BITS, IN_NATS, NATS, Measure
from transformer.config import Config, result_settings
from transformer.errors import UserError

AHEAD = ' †'
# What provenance.json says of a text before any tokenizer has cut it.
_TEXT = ('source', 'python', 'documents', 'train_bytes', 'held_out_bytes')


@dataclass(frozen=True)
class Cell:
  """One run: what was asked, how far it came, what it found."""

  name: str
  variant: str
  seed: int
  folder: Path
  state: str  # done, pruned (by a search), failed, unfinished (claimed or started), waiting
  asked: dict = field(repr=False)  # its entry in experiment.json
  config: dict = field(repr=False)
  provenance: dict = field(repr=False)
  result: dict = field(repr=False)  # done.json
  failure: dict = field(repr=False)  # failed.json
  progress: dict = field(repr=False)  # heartbeat.json
  rows: tuple[dict, ...] = field(repr=False)  # metrics.jsonl
  tokenizer: str = field(repr=False)  # digest of tokenizer.json; '' if there is none (yet)

  @cached_property
  def known(self) -> Config:
    """Its config. Raises UserError where this code does not know it."""
    return Config.from_json(self.config, str(self.folder / 'config.json'))

  @cached_property
  def settings(self) -> dict[str, Any]:
    """Those that change its result, but for the seed. Raises UserError as `known` does."""
    return result_settings(self.known, ('seed',))

  @property
  def text(self) -> tuple:
    """What tells its text from another, however it is tokenized; () where nothing does."""
    told = self.provenance.get('data') or {}
    return tuple((key, told[key]) for key in _TEXT if key in told)

  @property
  def looks_ahead(self) -> bool:
    """Whether which experts a token meets depends on tokens that are yet to be predicted."""
    return bool(self.asked.get('looks_ahead'))

  def total(self, key: str) -> int:
    """A count of done.json; of a cell that is not finished, the sum over its rows."""
    if is_number(found := self.result.get(key)):
      return int(found)
    return int(sum(self.series(f'train/{key}')[1])) if self.state != 'done' else 0

  def series(self, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric; rows without it or where it is not finite are left out."""
    found = [(r['step'], r[key]) for r in self.rows if is_number(r.get(key)) and 'step' in r]
    return [step for step, _ in found], [float(value) for _, value in found]

  def by_layer(self, stem: str) -> dict[int, float]:
    """Layer -> a metric '<kind>/<name>' in the last row of its kind; {} where that has none."""
    kind = stem.partition('/')[0] + '/'
    last = next((r for r in reversed(self.rows) if any(k.startswith(kind) for k in r)), {})
    found = {}
    for key, value in last.items():
      name, _, layer = key.rpartition('/')
      if name == stem and layer.isdecimal() and is_number(value):
        found[int(layer)] = float(value)
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Variant:
  """The cells that share the values of what is compared, over all seeds."""

  name: str
  values: tuple[str, ...]  # of the settings in Results.by, as text
  cells: tuple[Cell, ...]
  difference: stats.Difference | None  # to the baseline
  measure: Measure

  @cached_property
  def done(self) -> tuple[Cell, ...]:
    return tuple(c for c in self.cells if c.state == 'done')

  @cached_property
  def seeds(self) -> tuple[int, ...]:
    """Those asked for, in order."""
    return tuple(sorted({c.seed for c in self.cells}))

  @cached_property
  def looks_ahead(self) -> bool:
    """As of its cells."""
    return any(c.looks_ahead for c in self.cells)

  @property
  def mark(self) -> str:
    """Behind the name of one that looks ahead, wherever that is shown."""
    return AHEAD if self.looks_ahead else ''

  @cached_property
  def keys(self) -> tuple[str, ...]:
    """What tells its row of a table: its values, or its name where nothing is compared."""
    first, *others = self.values or (self.name,)
    return (first + self.mark, *others)

  @cached_property
  def losses(self) -> dict[int, float]:
    return losses(self.cells, self.measure)

  @cached_property
  def loss(self) -> stats.Sample:
    return stats.sample(self.losses.values())

  def sample(self, key: str) -> stats.Sample:
    """Mean and interval over the finished seeds of a number of done.json."""
    found: dict[int, list[float]] = {}
    for c in self.done:
      if c.seed in self.losses and is_number(c.result.get(key)):
        found.setdefault(c.seed, []).append(c.result[key])
    return stats.sample(_mean(values) for values in found.values())

  def over_layers(self, stem: str) -> float | None:
    """Mean over layers and finished seeds of a metric at its last; None where there is none."""
    found = [_mean(list(each.values())) for c in self.done if (each := c.by_layer(stem))]
    return _mean(found) if found else None

  def total(self, key: str) -> int:
    """Sum of a count over all cells: of done.json, or as far as the rows of one tell it."""
    return sum(c.total(key) for c in self.cells)

  def asked(self, key: str) -> Any:
    """'params', 'd_ff', 'ratio', … of experiment.json; None if not written, or not the same."""
    found = {c.asked.get(key) for c in self.cells}
    return found.pop() if len(found) == 1 else None


def measure(cells: Sequence[Cell]) -> Measure:
  """What these cells are judged by: bits per byte where they differ in their tokenizer.

  Raises UserError where a finished cell would have to tell those and cannot.
  """
  if len(_tokenizers(cells)) < 2:
    kinds = {architecture(c.config) for c in cells if c.config}
    return IN_NATS[kinds.pop()] if len(kinds) == 1 else NATS
  for cell in cells:
    if cell.state == 'done' and not is_number(cell.result.get(BITS.key)):
      masked = architecture(cell.config) == 'encoder'
      why = 'only some of its tokens are predicted' if masked else 'its data hold no text'
      raise UserError(
        f'{cell.folder}: tells no bits per byte, as {why}, and nats per token of different '
        'tokenizers do not compare; leave its experiment out'
      )
  return BITS


def _tokenizers(cells: Sequence[Cell]) -> set[str]:
  """By what was learned, as one setting learns another of each text; by setting before that."""
  made = {plain_setting(c.config, 'data.tokenizer') for c in cells if c.tokenizer}
  settings = {plain_setting(c.config, 'data.tokenizer') for c in cells if not c.tokenizer}
  return {c.tokenizer for c in cells if c.tokenizer} | (settings - made - {None})


def losses(cells: Sequence[Cell], measure: Measure) -> dict[int, float]:
  """Seed -> held-out loss; the mean where a variant has several cells of a seed.

  Only seeds whose cells are all finished, so that every mean is over the same cells.
  """
  by_seed: dict[int, list[Cell]] = {}
  for cell in cells:
    by_seed.setdefault(cell.seed, []).append(cell)
  return {
    seed: _mean([float(c.result[measure.key]) for c in found])
    for seed, found in by_seed.items()
    if all(c.state == 'done' for c in found)
  }


@dataclass(frozen=True)
class Results:
  """One or several experiments as their folders tell them now."""

  workdirs: tuple[Path, ...]  # where the cells are
  out: Path  # where the report goes
  name: str
  question: str
  by: tuple[str, ...]  # the settings that tell variants apart; () for single runs
  regrouped: bool  # by --by, not as the experiment itself compares
  baseline: str  # '' where nothing is compared
  match: str  # params, flops, none or ''
  absorb: str  # what gives way for the budget: d_ff, d_model, depth or ''
  command: str  # '' where several made the cells
  base: dict = field(repr=False)  # resolved base config, nested
  cells: tuple[Cell, ...] = field(repr=False)
  variants: tuple[Variant, ...] = field(repr=False)  # in the order of the experiment
  measure: Measure  # what every loss and difference here is told in
  references: dict  # unigram, bigram, …
  leaders: tuple[str, ...]  # the best variant besides the baseline and those not told apart from it
  outliers: dict[tuple[str, int], float]
  mixed: tuple[str, ...]  # settings beside `by` and the seed that differ within a variant
  besides: tuple[str, ...]  # the same between variants
  searched: dict = field(repr=False)  # search.json of a folder whose cells a search has made
  notes: tuple[str, ...]  # files that could not be read, mixtures of code or data

  @property
  def variable(self) -> str:
    return ', '.join(self.by)

  @cached_property
  def ranked(self) -> tuple[Variant, ...]:
    """Numeric variants by value, others by held-out loss; those without a result last."""
    if self.numeric:
      return tuple(sorted(self.variants, key=lambda v: float(v.name)))
    return tuple(sorted(self.variants, key=lambda v: v.loss.mean if v.loss.n else math.inf))

  @cached_property
  def numeric(self) -> bool:
    """Whether every variant is named by a number, so that it can be an axis."""
    return len(self.variants) > 1 and all(as_float(v.name) is not None for v in self.variants)

  def heading(self, path: str) -> str:
    """The last part of a setting's name, all of it where two would read alike."""
    leaf = path.rpartition('.')[2]
    return path if sum(p.rpartition('.')[2] == leaf for p in self.by) > 1 else leaf

  def label(self, variant: str) -> str:
    """'ratio 4' for a bare number, 'gelu 0.008' for two values, else the variant's own name.

    With the mark of one that looks ahead.
    """
    mark = next((v.mark for v in self.variants if v.name == variant), '')
    if len(self.by) > 1:
      return self._labels[variant] + mark
    plain = f'{self.heading(self.variable)} {variant}'.strip() if self.numeric else variant
    return plain + mark

  @cached_property
  def _labels(self) -> dict[str, str]:
    """Variant -> its values; those that say nothing alone, with their setting."""

    def text(path: str, value: str) -> str:
      return f'{self.heading(path)} {value}' if value in ('true', 'false', '-') else value

    return {v.name: ' '.join(map(text, self.by, v.values)) for v in self.variants}

  @cached_property
  def rows_keys(self) -> frozenset[str]:
    """The names of all metrics in the rows of finished cells."""
    return frozenset().union(*(row for cell in self.done for row in cell.rows))

  def by_state(self, *states: str) -> tuple[Cell, ...]:
    return tuple(c for c in self.cells if c.state in states)

  @property
  def done(self) -> tuple[Cell, ...]:
    return self.by_state('done')

  def setting(self, path: str) -> Any:
    """A setting of the resolved base config by its flag name, None if absent."""
    return plain_setting(self.base, path)

  def settings(self, path: str) -> tuple:
    """The distinct values a setting has in the cells' configs (the base's where none started)."""
    found = [plain_setting(c.config, path) for c in self.cells if c.config]
    found = [v for v in found if v is not None]
    if not found and self.setting(path) is not None:
      found = [self.setting(path)]
    return tuple(sorted(set(found), key=lambda v: (str(type(v)), v)))

  @cached_property
  def pairs(self) -> bool:
    """Whether all models go from a source to a target."""
    return self.settings('model.architecture') == ('encoder_decoder',)

  @property
  def unit(self) -> str:
    """What `amount` counts."""
    return 'pairs' if self.pairs else 'tokens'

  def amount(self, cell: Cell) -> int | None:
    """Tokens that a cell trains on, or pairs of a source and a target."""
    return self._rows(cell) if self.pairs else self.tokens(cell)

  def tokens(self, cell: Cell) -> int | None:
    """Tokens that a cell trains on, padding included."""
    return self._rows(cell, 'data.seq_len')

  def _rows(self, cell: Cell, *more: str) -> int | None:
    """Rows that a cell trains on, by its config or the base's, times `more` settings."""
    paths = ('train.steps', 'data.batch_size', *more)
    factors = [plain_setting(cell.config or self.base, path) for path in paths]
    return math.prod(factors) if all(factors) else None

  def provenance(self, key: str) -> tuple[str, ...]:
    """The distinct values of a provenance entry over the cells that have one, as text."""
    found = (c.provenance.get(key) for c in self.cells)
    return tuple(sorted({_text(v) for v in found if v not in (None, '', {})}))


def plain_setting(config: dict, path: str) -> Any:
  """A setting of a nested config by its flag name, None if absent."""
  section, _, name = path.rpartition('.')
  return (config.get(section) or {}).get(name) if section else config.get(name)


def architecture(config: dict) -> str:
  """Of a nested config; a decoder's where it was written before there were others."""
  return plain_setting(config, 'model.architecture') or 'decoder'


def is_number(value: Any) -> bool:
  """A finite int or float."""
  return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def as_float(text: str) -> float | None:
  """The finite number that `text` writes, None if it is none."""
  try:
    value = float(text)
  except ValueError:
    return None
  return value if math.isfinite(value) else None


def _mean(values: list[float]) -> float:
  return values[0] if len(values) == 1 else math.fsum(values) / len(values)


def _text(value: Any) -> str:
  if isinstance(value, dict):
    return ', '.join(f'{k} {v}' for k, v in value.items())
  return str(value)
