"""A user's own file: activations, sources and schedules registered from outside, by a decorator.

    from transformer.plugin import Param, activation, schedule, source

    @activation(sharpness=Param('F', init=1.0, decay=False))  # an array it owns, a number a unit
    def soft_step(x, sharpness, offset: float = 0.0): ...  # --ffn.activation='soft_step(offset=1)'

    @schedule
    def triangle(step, steps, peak: float = 0.3): ...  # share of --optim.learning_rate

    @source
    def notes(folder: str = 'notes'): yield group, text  # a group is held out whole

`--plugin=my_lab.py` (several: separated by commas) makes their names known everywhere: flags,
budgets, workers, reports; `pytest --plugin=my_lab.py` runs the batteries on them. Arguments with
defaults are the variant's. The file's text is part of the digest of every cell that uses it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformer import spec
from transformer.axes import Param
from transformer.config.activations import Gated, Plain
from transformer.config.field import setting
from transformer.config.settings import Config
from transformer.errors import UserError

__all__ = ['Param', 'activation', 'load', 'loaded', 'schedule', 'source']

_LOADED: dict[Path, str] = {}  # file -> digest of the text that ran
_ORIGIN: dict[tuple[str, str], Path] = {}  # (slot, variant) -> file that declared it


def activation(function: Callable | None = None, **parameters: Param) -> Callable:
  """Registers an activation f(x, …) of up(x), or f(gate, up, …) of both projections.

  parameters: arrays it owns, by the names of the arguments that take them.
  """
  if function is None:
    return lambda decorated: activation(decorated, **parameters)
  names = list(inspect.signature(function).parameters)
  base = Gated if names[:2] == ['gate', 'up'] else Plain
  inputs = len(base.inputs)
  _declare('ffn.activation', function, base, names[:inputs] + list(parameters), parameters)
  spec.bodies('ffn.activation')[function.__name__] = function
  return function


def schedule(function: Callable) -> Callable:
  """Registers a schedule f(step, steps, …) -> share of the peak rate. Both are float32 scalars."""
  _declare('optim.schedule', function, object, ['step', 'steps'])

  def body(step: Any, hyper: dict) -> Any:
    names = [f.name for f in dataclasses.fields(declared)]
    own = {name: hyper[f'optim.schedule.{name}'] for name in names}
    return function(step, hyper['train.steps'], **own)

  declared = spec.variants('optim.schedule')[function.__name__]
  spec.bodies('optim.schedule')[function.__name__] = body
  return function


def source(function: Callable) -> Callable:
  """Registers a generator f(…) of documents, each a group and a text."""
  _declare('data.source', function, _TextSource, [])

  @functools.wraps(function)
  def body(declared: Any, config: Config) -> Iterator[tuple[str, str]]:
    yield from function(**dataclasses.asdict(declared))

  spec.bodies('data.source')[function.__name__] = body
  return function


class _TextSource:
  text = True


def load(paths: str) -> str:
  """Runs the files of --plugin that have not run yet; returns their full paths.

  Raises UserError, naming file and line, for a file that cannot be read or run.
  """
  found = []
  for part in filter(None, (p.strip() for p in paths.split(','))):
    path = Path(part).expanduser().resolve()
    found.append(str(path))
    if path in _LOADED:
      continue
    try:
      text = path.read_bytes()
    except OSError as e:
      raise UserError(f'--plugin={part}: cannot be read ({e.strerror})') from None
    digest = hashlib.sha256(text).hexdigest()
    if digest in _LOADED.values():  # a copy, as a snapshot has
      continue
    before = _declared()
    _run(part, path, text)
    _LOADED[path] = digest
    _ORIGIN.update(dict.fromkeys(_declared() - before, path))
  return ','.join(found)


def origins(config: Config) -> dict[str, str]:
  """File -> digest of the plugins that declare a variant this config uses."""
  found = {}
  for slot in spec.slots():
    for variant in _and_parts(slot, config.get(slot)):
      if path := _ORIGIN.get((variant.slot, variant.variant)):
        found[str(path)] = _LOADED[path]
  return found


def loaded() -> list[Path]:
  """The files that have run, in that order."""
  return list(_LOADED)


def names(slot: str) -> set[str]:
  """The variants of a slot that come from plugins."""
  return {name for of, name in _ORIGIN if of == slot}


def _and_parts(slot: str, text: str) -> list[Any]:
  """A variant, and those that are its arguments."""
  variant = spec.parse(slot, text)
  found = [variant]
  for field in dataclasses.fields(variant):
    if inner := field.metadata.get('slot'):
      found += _and_parts(inner, getattr(variant, field.name))
  return found


def _run(part: str, path: Path, text: bytes) -> None:
  """Runs a file as a module named by its stem."""
  module = importlib.util.module_from_spec(importlib.util.spec_from_loader(path.stem, None))
  module.__file__ = str(path)
  try:
    exec(compile(text, str(path), 'exec'), module.__dict__)
  except UserError:
    raise
  except Exception as e:  # whatever a user's file may do
    lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == str(path)]
    line = getattr(e, 'lineno', None) or (lines or ['?'])[-1]
    message = getattr(e, 'msg', None) or str(e).partition('\n')[0]
    raise UserError(f'--plugin={part}: line {line}: {type(e).__name__}: {message}') from e


def _declared() -> set[tuple[str, str]]:
  return {(slot, name) for slot in spec.slots() for name in spec.variants(slot)}


def _declare(
  slot: str,
  function: Callable,
  base: type,
  given: list[str],
  parameters: dict[str, Param] | None = None,
) -> None:
  """Declares a variant named and documented as `function`; its defaults become arguments.

  given: the arguments that are not the variant's.
  """
  traced = slot.startswith('optim.')  # read from numbers when the step runs
  kinds = (int, float) if traced else (bool, int, float, str)
  fields, types = {}, {}
  arguments = inspect.signature(function).parameters
  if missing := [name for name in given if name not in arguments]:
    raise TypeError(f'{function.__name__}() should take an argument {missing[0]!r}')
  for name, argument in arguments.items():
    if name in given:
      continue
    if type(argument.default) not in kinds:
      wanted = 'a number' if traced else 'a number, bool or text'
      raise TypeError(f'{function.__name__}(): {name} needs a default: {wanted}')
    kind = 'traced' if traced or slot.startswith('data.') else 'static'
    types[name] = type(argument.default)
    fields[name] = setting(argument.default, name, kind=kind)
  body = {'__doc__': function.__doc__, '__annotations__': types, **fields}
  if parameters:
    body['parameters'] = parameters
  spec.declare(slot, function.__name__)(type(function.__name__, (base,), body))
