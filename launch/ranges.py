"""Where a search looks: 'optim.learning_rate=log(1e-4,1e-2); ffn.ratio=int(1,16)'."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launch import space
from launch.space import Point
from transformer import spec
from transformer.config import SETTINGS
from transformer.errors import UserError

if TYPE_CHECKING:
  import optuna

__all__ = ['Axis', 'Point', 'parse']

_KINDS = ('uniform', 'log', 'int', 'logint', 'choice')
_USAGE = (
  "expected ranges, as in 'optim.learning_rate=log(1e-4,1e-2); ffn.ratio=int(1,16); "
  "ffn.activation=choice(relu,gelu)'; of numbers uniform, log, int, logint"
)


@dataclass(frozen=True)
class Axis:
  """The values of one setting. kind: how they are drawn. values: both ends, or all choices."""

  kind: str
  values: tuple[Any, ...]
  type: str

  def __str__(self) -> str:
    return f'{self.kind}({",".join(map(space.text, self.values))})'

  def ends(self) -> tuple[Any, Any]:
    """The least and the largest, of choices the first and the last."""
    return self.value(self.values[0]), self.value(self.values[-1])

  def suggest(self, trial: optuna.Trial, name: str) -> Any:
    """The value that a trial has, or draws."""
    if self.kind == 'choice':
      return trial.suggest_categorical(name, self.values)
    low, high = self.values
    if self.kind in ('int', 'logint'):
      return trial.suggest_int(name, int(low), int(high), log=self.kind == 'logint')
    return trial.suggest_float(name, low, high, log=self.kind == 'log')

  def value(self, drawn: Any) -> Any:
    """What was drawn, in the type of the setting."""
    return float(drawn) if self.type == 'float' else drawn


def parse(text: str) -> dict[str, Axis]:
  """Setting -> where to look. Raises UserError for what is no setting, or no range of it."""
  where, found = f'--search={text}', {}
  for part in spec.parts(text, ';'):
    name, _, told = (x.strip() for x in part.partition('='))
    call = re.fullmatch(r'(\w+)\((.*)\)', told, re.DOTALL)
    if not call or call[1] not in _KINDS:
      raise UserError(f'{where}: {part!r} is no range; {_USAGE}')
    space.check_name(name, where)
    if name in found:
      raise UserError(f'{where}: {name} is named twice')
    found[name] = _axis(name, call[1], spec.parts(call[2], ','), where)
  if not found:
    raise UserError(f'{where}: names no setting; {_USAGE}')
  return found


def _axis(name: str, kind: str, parts: list[str], where: str) -> Axis:
  declared = SETTINGS[name].type
  values = tuple(space.value(name, part, where) for part in parts)
  if kind == 'choice':
    if len(values) < 2 or len(set(values)) < len(values):
      raise UserError(f'{where}: {name} should have two choices or more, each once')
    return Axis(kind, values, declared)
  if declared not in ('int', 'float') or (declared == 'int' and 'int' not in kind):
    right = 'int, logint or choice' if declared == 'int' else 'choice'
    raise UserError(f'{where}: {name} is drawn by {right}, not by {kind}')
  if len(values) != 2 or not values[0] < values[1]:
    raise UserError(f'{where}: {name} should have two ends, the lower one first')
  if 'int' in kind and any(value != int(value) for value in values):
    raise UserError(f'{where}: {name} should have whole numbers at its ends')
  if 'log' in kind and values[0] <= 0:
    raise UserError(f'{where}: {name} is drawn by its logarithm, so its ends should be above 0')
  return Axis(kind, values, declared)
