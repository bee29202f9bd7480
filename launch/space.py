"""The points of a sweep: what --grid, --zip and --where say, checked against the settings.

A point is a dict, setting -> value. Nothing of what is typed is ever run: values are read by their
settings' declarations, conditions by a table of operators.
"""

from __future__ import annotations

import ast
import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Any

from transformer import spec
from transformer.config import SETTINGS, Config
from transformer.errors import UserError, nearest

Point = dict[str, Any]
MOST = 100_000  # cells of a sweep
_GRID = "expected settings and their values, as in 'ffn.activation=relu,gelu; seed=0..4'"
_FREE = "changes no run's result, so it cannot be swept"


def points(grid: str, zipped: str = '', where: str = '', base: Config | None = None) -> list[Point]:
  """Every combination of the grid's values with each row of the zipped ones, that `where` keeps.

  grid: 'ffn.ratio=2,4; seed=0..4', a range with both its ends. zipped: the same, of equally many
  values, taken side by side. where: a condition on settings, 'ffn.ratio < 8 or seed == 0'; those
  that do not vary have the values of `base`. The last setting varies fastest.
  Raises UserError naming the flag for what is no setting, no value of it, or leaves nothing.
  """
  axes, columns = axes_of(grid, 'grid'), axes_of(zipped, 'zip')
  if not axes and not columns:
    raise UserError(f'--grid={grid}: names no setting; {_GRID}')
  if both := [name for name in columns if name in axes]:
    raise UserError(f'--zip={zipped}: {both[0]} is in --grid too; leave it out of one of them')
  if len({len(values) for values in columns.values()}) > 1:
    told = ', '.join(f'{len(values)} of {name}' for name, values in columns.items())
    raise UserError(f'--zip={zipped}: its values go side by side, and there are {told}')
  rows = list(zip(*columns.values(), strict=True)) if columns else [()]
  count = len(rows)
  for values in axes.values():
    count *= len(values)
  if count > MOST:
    raise UserError(f'--grid={grid}: comes to {count:,} cells; {MOST:,} are the most')
  keep = condition(where) if where else lambda config: True
  base = base or Config()
  found = [
    point
    for row in rows
    for values in itertools.product(*axes.values())
    if keep(base.replace(**(point := dict(zip((*columns, *axes), (*row, *values), strict=True)))))
  ]
  if not found:
    raise UserError(f'--where={where}: leaves none of {count} cells')
  return found


def axes_of(text: str, flag: str) -> dict[str, list]:
  """'a=1,2; b=x,y' -> setting -> values, each read and checked as its setting declares."""
  found: dict[str, list] = {}
  for part in spec.parts(text, ';'):
    name, equals, values = part.partition('=')
    name = name.strip().lstrip('-')
    if not equals or not values.strip():
      raise UserError(f'--{flag}={text}: {part!r} is no setting with values; {_GRID}')
    check_name(name, f'--{flag}={text}')
    if name in found:
      raise UserError(f'--{flag}={text}: {name} is named twice')
    found[name] = list(_values(name, values, f'--{flag}={text}'))
    seen: set = set()
    for value in found[name]:
      if value in seen:
        raise UserError(f'--{flag}={text}: {name} has the value {value} twice')
      seen.add(value)
  return found


def check_name(name: str, where: str) -> None:
  """Raises UserError for what is no setting, or none that a result depends on."""
  if name not in SETTINGS:
    raise UserError(f'{where}: no setting {name!r}{nearest(name, SETTINGS)}')
  if SETTINGS[name].metadata['kind'] == 'free':
    raise UserError(f'{where}: {name} {_FREE}')


def value(name: str, text: str, where: str) -> Any:
  """One value in the type of its setting, in range; of a slot, a variant that is declared."""
  kind, text = SETTINGS[name].type, text.strip()
  if kind == 'str' and len(text) > 1 and text[0] == text[-1] and text[0] in '\'"':
    text = text[1:-1]
  try:
    found = _READ[kind](text)
  except (KeyError, ValueError):
    raise UserError(f'{where}: {text!r} should be {_KINDS[kind]}, as {name} is') from None
  try:
    if name in spec.slots():
      spec.parse(name, found)
    return spec.check_value(f'--{name}', SETTINGS[name], found)
  except UserError as e:
    raise UserError(f'{where}: {str(e).removeprefix("--")}') from None


def text(value: Any) -> str:
  """A value as it may be typed: 0.008, true, gelu."""
  if isinstance(value, bool):
    return str(value).lower()
  return f'{value:.6g}' if isinstance(value, float) else str(value)


_READ: dict[str, Callable[[str], Any]] = {
  'int': int,
  'float': float,
  'str': str,
  'bool': lambda text: {'true': True, 'false': False}[text.lower()],
}
_KINDS = {'int': 'a whole number', 'float': 'a number', 'bool': 'true or false', 'str': 'a text'}


def _values(name: str, text: str, where: str) -> Iterator[Any]:
  numeric = SETTINGS[name].type in ('int', 'float')
  for part in spec.parts(text, ','):
    ends = [end.strip() for end in part.split('..')]
    if not numeric or len(ends) == 1:
      yield value(name, part, where)
      continue
    whole = len(ends) == 2 and all(map(str.isdecimal, ends))
    if not whole or not 0 <= int(ends[1]) - int(ends[0]) < MOST:
      raise UserError(f'{where}: {part} is no range of whole numbers, as 0..4 is')
    yield from (value(name, str(n), where) for n in range(int(ends[0]), int(ends[1]) + 1))


def condition(text: str) -> Callable[[Config], bool]:
  """A condition on settings, 'ffn.ratio < 8 and ffn.activation in ("relu", "gelu")', as a function.

  Comparisons, and, or, not, brackets and + - * / are understood. Raises UserError for all else.
  """
  try:
    tree = ast.parse(text.strip(), mode='eval').body
  except (SyntaxError, ValueError, MemoryError, RecursionError):
    raise _refused(text, 'is no condition') from None
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute | ast.Name) and not _inner(node, tree):
      name = ast.unparse(node)
      if name not in SETTINGS:
        raise UserError(f'--where={text}: no setting {name!r}{nearest(name, SETTINGS)}')
  try:
    _value_of(tree, Config(), text)  # what it is made of, before the first cell is made
  except (TypeError, ArithmeticError, RecursionError) as e:
    raise _refused(text, f'cannot be told: {e}') from None

  def holds(config: Config) -> bool:
    try:
      return bool(_value_of(tree, config, text))
    except (TypeError, ArithmeticError, RecursionError) as e:
      raise _refused(text, f'cannot be told: {e}') from None

  return holds


def _inner(node: ast.expr, tree: ast.expr) -> bool:
  """Whether a name is but the beginning of a dotted one, as ffn in ffn.ratio."""
  return any(isinstance(n, ast.Attribute) and n.value is node for n in ast.walk(tree))


_OPERATORS: dict[type, Callable] = {
  ast.Eq: operator.eq,
  ast.NotEq: operator.ne,
  ast.Lt: operator.lt,
  ast.LtE: operator.le,
  ast.Gt: operator.gt,
  ast.GtE: operator.ge,
  ast.In: lambda a, b: a in b,
  ast.NotIn: lambda a, b: a not in b,
  ast.Add: operator.add,
  ast.Sub: operator.sub,
  ast.Mult: operator.mul,
  ast.Div: operator.truediv,
  ast.Not: operator.not_,
  ast.USub: operator.neg,
}


def _value_of(node: ast.expr, config: Config, text: str) -> Any:
  """What a part of a condition comes to for a config."""

  def of(part: ast.expr) -> Any:
    return _value_of(part, config, text)

  match node:
    case ast.Constant(value=bool() | int() | float() | str() as constant):
      return constant
    case ast.Attribute() | ast.Name():
      return config.get(ast.unparse(node))
    case ast.Tuple(elts=parts) | ast.List(elts=parts):
      return tuple(map(of, parts))
    case ast.BoolOp(op=op, values=parts):
      return (all if isinstance(op, ast.And) else any)(map(of, parts))
    case ast.UnaryOp(op=op, operand=part) if type(op) in _OPERATORS:
      return _OPERATORS[type(op)](of(part))
    case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
      numbers = of(left), of(right)
      if not all(isinstance(n, int | float) for n in numbers):
        raise TypeError('only numbers are added and multiplied')
      return _OPERATORS[type(op)](*numbers)
    case ast.Compare(left=left, ops=ops, comparators=rest) if all(
      type(op) in _OPERATORS for op in ops
    ):
      values = [of(left), *map(of, rest)]
      pairs = zip(ops, itertools.pairwise(values), strict=True)
      return all(_OPERATORS[type(op)](*pair) for op, pair in pairs)
  raise _refused(text, f'{ast.unparse(node)!r} is no part of a condition')


def _refused(text: str, why: str) -> UserError:
  return UserError(
    f'--where={text}: {why}; compare settings, as in \'ffn.ratio<8 or ffn.activation=="gelu"\''
  )
