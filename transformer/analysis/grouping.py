"""Groups cells by the settings they ran with: what --by names, and what differs besides."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from transformer import spec
from transformer.analysis import formats
from transformer.analysis.budget import BUDGETS
from transformer.analysis.results import Cell
from transformer.config import SETTINGS, Config
from transformer.errors import UserError, nearest

ABSENT = '-'  # what a variant without that argument shows, and a dense model of what is of experts
_WIDTHS = ('ffn.d_ff', 'ffn.ratio')  # one tells the other, and matching a budget moves both


def parse(text: str) -> tuple[str, ...]:
  """'ffn.activation,optim.name.b2' -> the settings it names; variants' arguments included.

  Raises UserError for what is no setting.
  """
  names = tuple(dict.fromkeys(n.strip().lstrip('-') for n in text.split(',') if n.strip()))
  if not names:
    raise UserError(f'--by={text}: names no setting; try --by=ffn.activation')
  arguments = {
    f'{slot}.{f.name}'
    for slot in spec.slots()
    for declared in spec.variants(slot).values()
    for f in dataclasses.fields(declared)
  }
  options = (SETTINGS.keys() | arguments) - {'seed'}
  for name in names:
    if name == 'seed':
      raise UserError(f'--by={text}: seeds are what a group averages over; leave seed out')
    if name not in options:
      raise UserError(f'--by={text}: no setting {name!r}{nearest(name, options)}')
  return names


@dataclasses.dataclass(frozen=True)
class Groups:
  """Cells whose variants are named by their values of settings."""

  cells: list[Cell]
  values: dict[str, tuple[str, ...]]  # variant -> its values, as text
  names: dict[tuple, str]  # values themselves -> variant


def regroup(cells: Iterable[Cell], by: tuple[str, ...], notes: list[str]) -> Groups:
  """The cells, named by their values of `by`.

  Cells without a config that can be read are left out and noted.
  """
  found, without = [], []
  for cell in cells:
    if not cell.config:
      without.append(f'`{cell.name}`')
      continue
    try:
      found.append((cell, values(cell.config, by, _origin(cell))))
    except UserError as error:
      notes.append(f'`{cell.name}` left out: {error}')
  if without:
    notes.append(
      f'left out, as no config.json tells their settings yet: {formats.listing(without, most=6)}'
    )
  distinct = list(dict.fromkeys(own for _, own in found))
  texts = list(zip(*map(_texts, zip(*distinct, strict=True)), strict=True))
  names = {own: ', '.join(text) for own, text in zip(distinct, texts, strict=True)}
  return Groups(
    [dataclasses.replace(cell, variant=names[own]) for cell, own in found],
    dict(zip(names.values(), texts, strict=True)),
    names,
  )


def _origin(cell: Cell) -> str:
  return str(cell.folder / 'config.json')


def values(config: dict, by: tuple[str, ...], origin: str) -> tuple[Any, ...]:
  """What a nested config says of these settings; raises UserError naming `origin`."""
  known = Config.from_json(config, origin)
  return tuple(_value(known, path) for path in by)


def _value(config: Config, path: str) -> Any:
  """A setting, or an argument of the variant in a slot: a number, or a text that tells it."""
  if path in SETTINGS:
    value = config.get(path)
  else:
    slot, _, name = path.rpartition('.')
    value = getattr(spec.parse(slot, config.get(slot)), name, None)
  if path.startswith('moe.') and path != 'moe.experts' and not config.moe.experts:
    value = None
  number = isinstance(value, (int, float)) and not isinstance(value, bool)
  return value if number else value_text(value)


def _texts(column: Iterable[Any]) -> list[str]:
  """Values as text: of numbers six digits, or all where those would not keep them apart."""
  column = list(column)
  texts = [value_text(value) for value in column]
  return texts if len(set(texts)) == len(set(column)) else [str(value) for value in column]


def value_text(value: Any) -> str:
  """0.008, 384, true, gelu: as one would write it behind a flag."""
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, float):
    return f'{value:.6g}'
  return ABSENT if value in (None, '') else str(value)


def same_text(text: str) -> str:
  """A group's name as it may be typed, '0.0080,relu', in one spelling."""
  parts = (part.strip() for part in text.split(','))
  return ', '.join(_plain_number(part) for part in parts)


def _plain_number(text: str) -> str:
  try:
    return repr(float(text))
  except ValueError:
    return text


def differing(
  cells: Iterable[Cell], by: tuple[str, ...], match: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Settings beside `by` and the seed that differ within a variant, and only between variants."""
  groups: dict[str, list[dict]] = {}
  for cell in cells:
    if not cell.config:
      continue
    try:
      found = cell.settings
    except UserError:  # of other code: regroup() has told it, or nothing is grouped
      continue
    groups.setdefault(cell.variant, []).append(found)
  within = set().union(*(_differing(group) for group in groups.values()))
  between = _differing([c for group in groups.values() for c in group]) - within
  if match in BUDGETS or set(by) & set(_WIDTHS):
    between -= set(_WIDTHS)
  told = tuple(f'{path}.' for path in by)  # a variant's arguments are told by its slot

  def shown(names: set[str]) -> tuple[str, ...]:
    return tuple(sorted(n for n in names if n not in by and not n.startswith(told)))

  return shown(within), shown(between)


def _differing(settings: list[dict]) -> set[str]:
  """Keys whose values differ; a setting that is absent has its default."""
  keys = set().union(*settings)
  return {k for k in keys if len({repr(s.get(k)) for s in settings}) > 1}
