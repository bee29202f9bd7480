r"""Pairs of texts, a line each: source, tab, target.

Within a text \t stands for a tab, \n for a new line, \r for a carriage return and \\ for a
backslash; before anything else a backslash is itself. Pairs of one source lie on one side.
"""

from __future__ import annotations

import re
from typing import Any

from transformer import spec
from transformer.config import Config
from transformer.data.corpus import Corpus, Documents, file_states, matches
from transformer.data.records import lines
from transformer.errors import UserError

_ESCAPES = {r'\t': '\t', r'\n': '\n', r'\r': '\r', r'\\': '\\'}


def pairs(declared: Any, config: Config) -> Corpus:
  """A pair a line. Raises UserError, naming file and line, for a line that is none."""
  source = spec.canonical(declared)
  paths = matches(declared.glob, source)

  def documents() -> Documents:
    for path in paths:
      where = f'--data.source={source}: {path}'
      try:
        for number, line in lines(path, where):
          yield _pair(line, f'{where} line {number}')
      except OSError as e:
        raise UserError(f'{where} cannot be read ({e})') from None

  info = dict(source='pairs', files=len(paths))
  return Corpus(['pairs', file_states(paths)], info, documents, pairs=True)


def _pair(line: bytes, where: str) -> tuple[str, str, str]:
  """(group, source, target)."""
  try:
    sides = line.decode().rstrip('\r\n').split('\t')
  except UnicodeDecodeError:
    raise UserError(f'{where} is not UTF-8; convert the file') from None
  if len(sides) != 2:
    raise UserError(
      f'{where} has {len(sides) - 1} tabs; it should be source, tab, target, with \\t for a tab '
      'within them'
    )
  for side, name in zip(sides, ('source', 'target'), strict=True):
    if not side.strip():
      raise UserError(f'{where} has an empty {name}; fill it in or leave the line out')
  source, target = (re.sub(r'\\[tnr\\]', lambda m: _ESCAPES[m[0]], side) for side in sides)
  return source, source, target
