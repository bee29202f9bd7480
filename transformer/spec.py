"""Variants in one string: 'bpe(vocab_size=4096)' <-> an instance of its declaration.

A slot is a setting that takes a variant, named by its flag ('ffn.activation'). A declaration is a
frozen dataclass registered under (slot, name); its fields are the variant's arguments. An argument
may itself be a variant: 'product(silu, identity)'.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import math
import re
import typing
from collections.abc import Callable

from transformer import axes
from transformer.errors import UserError, nearest

_DECLARED: dict[str, dict[str, type]] = {}
_BODIES: dict[str, dict[str, Callable]] = {}
_COLON = re.compile(r'^([a-zA-Z_]\w*):(.*)$', re.DOTALL)


def declare(slot: str, name: str) -> Callable[[type], type]:
  """Class decorator: declares variant `name` of `slot`; annotations become its arguments.

  The class attribute `parameters`, name -> axes.Param, lists arrays that an activation owns.
  """

  def register(cls: type) -> type:
    cls = dataclasses.dataclass(frozen=True)(cls)
    cls.slot, cls.variant = slot, name
    kinds = {f.metadata.get('kind', 'static') for f in dataclasses.fields(cls)}
    if slot.startswith(('model.', 'ffn.')) and kinds - {'static'}:
      raise ValueError(f'{slot}={name}: a module reads its arguments when compiled: all are static')
    if name in _DECLARED.setdefault(slot, {}):
      raise ValueError(f'{slot}={name} is declared twice')
    _DECLARED[slot][name] = cls
    for parameter, rule in getattr(cls, 'parameters', {}).items():
      if rule.letters != 'F':
        raise ValueError(f'{name}: {parameter} should have the letters F, a number a hidden unit')
      path = rf'/(middle_)?(gate_|up_)?{name}_{parameter}'
      axes.PARAMS['(ffn|shared)' + path] = rule
      axes.PARAMS['experts' + path] = dataclasses.replace(rule, letters='EF')
    return cls

  return register


def slots() -> tuple[str, ...]:
  """The names of all slots."""
  return tuple(_DECLARED)


def variants(slot: str) -> dict[str, type]:
  """Name -> declaration of every variant of `slot`."""
  return dict(_DECLARED[slot])


def bodies(slot: str) -> dict[str, Callable]:
  """Name -> body of the variants of `slot`, filled by the slot's room and by a user's own file."""
  return _BODIES.setdefault(slot, {})


def parse(slot: str, text: str) -> typing.Any:
  """Returns the declared instance that `text` describes.

  'name', 'name(1, key=2)' and 'name:text' (one string argument) are understood.
  Raises UserError naming the flag for an unknown variant or argument, or a value out of range.
  """
  colon = _COLON.match(text)
  if colon:
    name, args, keywords = colon[1], [ast.Constant(colon[2])], {}
  else:
    name, args, keywords = _parse_call(slot, text)
  declared = _DECLARED[slot]
  if name not in declared:
    raise UserError(f'--{slot}={text}: no variant {name!r}{nearest(name, declared)}')
  fields = {f.name: f for f in dataclasses.fields(declared[name])}
  if len(args) > len(fields):
    takes = f'takes {len(fields)}' if fields else 'takes no'
    raise UserError(f'--{slot}={text}: {name} {takes} argument(s), got {len(args)}')
  values = dict(zip(fields, args, strict=False))
  for key, value in keywords.items():
    if key not in fields:
      options = nearest(key, fields) if fields else '; it takes none'
      raise UserError(f'--{slot}={text}: {name} has no argument {key!r}{options}')
    if key in values:
      raise UserError(f'--{slot}={text}: {key} is given twice')
    values[key] = value
  for key, value in values.items():
    values[key] = _argument(slot, text, fields[key], value)
  missing = [k for k, f in fields.items() if k not in values and f.default is dataclasses.MISSING]
  if missing:
    raise UserError(f'--{slot}={text}: {name} needs {missing[0]}, as in {usage(declared[name])}')
  return declared[name](**values)


def _argument(slot: str, text: str, field: dataclasses.Field, node: ast.expr) -> typing.Any:
  """The value of one argument; of one that is itself a variant, its shortest text.

  A choice among words may come without quotes.
  """
  inner = field.metadata.get('slot')
  try:
    if field.metadata.get('choices') and isinstance(node, ast.Name):
      value = node.id  # no quotes inside a shell's
    elif not inner:
      value = ast.literal_eval(node)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
      value = node.value
    else:
      value = ast.unparse(node)
  except (ValueError, TypeError, MemoryError, RecursionError):
    raise _malformed(slot, text) from None
  if inner:
    return canonical(parse(inner, value))
  return check_value(f'--{slot}={text}: {field.name}', field, value)


def canonical(variant: typing.Any) -> str:
  """The shortest text that parses to `variant`: defaults left out."""
  given = [f for f in dataclasses.fields(variant) if getattr(variant, f.name) != f.default]
  if len(given) == 1 and given[0].metadata.get('colon'):
    return f'{variant.variant}:{getattr(variant, given[0].name)}'
  inside = ', '.join(f'{f.name}={_shown(f, getattr(variant, f.name))}' for f in given)
  return f'{variant.variant}({inside})' if inside else variant.variant


def _shown(field: dataclasses.Field, value: typing.Any) -> str:
  bare = field.metadata.get('slot') or field.metadata.get('choices')
  return str(value) if bare else repr(value)


def usage(declaration: type) -> str:
  """How a variant is written with all its arguments, as in 'bpe(vocab_size=4096)'."""
  fields = dataclasses.fields(declaration)
  if fields and fields[0].metadata.get('colon'):
    name, text = declaration.variant, fields[0].name.upper()
    more = ''.join(f', {f.name}={_shown(f, f.default)}' for f in fields[1:])
    return f'{name}:{text}' + (f' or {name}({text!r}{more})' if more else '')
  inside = ', '.join(f'{f.name}={_shown(f, f.default)}' for f in fields)
  return f'{declaration.variant}({inside})' if inside else declaration.variant


def split(text: str) -> list[str]:
  """Cuts 'a,b(c=1, d=2),e' at the commas outside brackets and quotes; at ';' if there is one.

  Blanks around parts are dropped.
  """
  if ';' in text:
    return [part.strip() for part in text.split(';') if part.strip()]
  return parts(text, ',')


def parts(text: str, separator: str) -> list[str]:
  """Cuts at the separators outside brackets and quotes; blanks around parts are dropped."""
  found, depth, quote = [''], 0, ''
  for c in text:
    if quote:
      quote = '' if c == quote else quote
    elif c in '\'"':
      quote = c
    else:
      depth += (c in '([{') - (c in ')]}')
    if c == separator and not quote and depth <= 0:
      found.append('')
    else:
      found[-1] += c
  return [part.strip() for part in found if part.strip()]


def check_value(where: str, field: dataclasses.Field, value: typing.Any) -> typing.Any:
  """Returns `value` in the type of `field`; raises UserError if type, range or choice is wrong."""
  kind = field.type if isinstance(field.type, str) else field.type.__name__
  if kind == 'float' and isinstance(value, int) and not isinstance(value, bool):
    value = float(value) if value.bit_length() < 1024 else math.inf
  if type(value).__name__ != kind:
    raise UserError(f'{where}: {value!r} should be of type {kind}')
  low, high = field.metadata.get('low'), field.metadata.get('high')
  choices = field.metadata.get('choices')
  if kind == 'float' and not math.isfinite(value):
    raise UserError(f'{where}: {value} is not a number to run with')
  if field.metadata.get('colon') and not value:
    raise UserError(f'{where}: is empty')
  if low is not None and value < low:
    raise UserError(f'{where}: {value} is below the least allowed, {low}')
  if high is not None and value > high:
    raise UserError(f'{where}: {value} is above the most allowed, {high}')
  if choices and value not in choices:
    raise UserError(f'{where}: no choice {value!r}{nearest(str(value), choices)}')
  return value


@functools.lru_cache(4096)  # a sweep reads the same few texts thousands of times
def _parse_call(slot: str, text: str) -> tuple[str, list[ast.expr], dict[str, ast.expr]]:
  """Splits 'name(1, key=2)' into its name, positional and keyword arguments."""
  try:
    node = ast.parse(text.strip(), mode='eval').body
  except (SyntaxError, ValueError, MemoryError, RecursionError):  # the last two: nested too deeply
    raise _malformed(slot, text) from None
  if isinstance(node, ast.Name):
    return node.id, [], {}
  if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
    keywords = {k.arg: k.value for k in node.keywords if k.arg}
    if len(keywords) == len(node.keywords):
      return node.func.id, node.args, keywords
  raise _malformed(slot, text)


def _malformed(slot: str, text: str) -> UserError:
  return UserError(f'--{slot}={text}: expected name or name(argument=value), with literal values')
