"""JSON Lines and Parquet: documents with fields, of which --data.text_field is the text.

--data.group_field names what is held out whole; without it a text is its own group, so that
copies of it lie on one side.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

from transformer import spec
from transformer.config import Config
from transformer.data.corpus import Corpus, Documents, file_states, matches
from transformer.errors import UserError

_ROWS = 1024  # of Parquet in memory at a time


def jsonl(declared: Any, config: Config) -> Corpus:
  """A document a line; blank lines are passed over."""
  return _corpus(declared, config, _lines)


def parquet(declared: Any, config: Config) -> Corpus:
  """A document a row; only the columns that are needed are read."""
  return _corpus(declared, config, _rows)


def _corpus(declared: Any, config: Config, read: Any) -> Corpus:
  source = spec.canonical(declared)
  paths = matches(declared.glob, source)
  fields = {'text_field': config.data.text_field, 'group_field': config.data.group_field}
  if not fields['text_field']:
    raise UserError('--data.text_field: is empty; name the field of the text')

  def documents() -> Documents:
    for path in paths:
      try:
        yield from read(path, fields, f'--data.source={source}: {path}')
      except OSError as e:
        raise UserError(f'--data.source={source}: {path} cannot be read ({e})') from None

  info = dict(source=declared.variant, files=len(paths), **{k: v for k, v in fields.items() if v})
  return Corpus([declared.variant, file_states(paths), *fields.values()], info, documents)


def lines(path: str, where: str) -> Iterator[tuple[int, bytes]]:
  """Each line of a file and its number, from 1 on; .gz is unpacked.

  Raises UserError, beginning with `where`, for a damaged archive.
  """
  number = 0
  with (gzip.open if path.endswith('.gz') else open)(path, 'rb') as file:
    try:
      for number, line in enumerate(file, 1):
        yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile):
      raise UserError(f'{where}: the archive is damaged after line {number}') from None


def _lines(path: str, fields: dict[str, str], where: str) -> Documents:
  """(group, text) of each line of a file."""
  for number, line in lines(path, where):
    if line.strip():
      record = _record(line, f'{where} line {number}')
      yield _document(record, fields, f'{where} line {number}')


def _record(line: bytes, where: str) -> dict:
  try:
    record = json.loads(line)
  except UnicodeDecodeError:
    raise UserError(f'{where} is not UTF-8; convert the file') from None
  except (ValueError, RecursionError) as e:
    raise UserError(f'{where} is not JSON ({getattr(e, "msg", "nested too deeply")})') from None
  if not isinstance(record, dict):
    raise UserError(f'{where} should be an object with fields, as in {{"text": "…"}}')
  return record


def _rows(path: str, fields: dict[str, str], where: str) -> Documents:
  """(group, text) of each row of a file."""
  import pyarrow as pa
  import pyarrow.parquet as pq

  try:
    with pq.ParquetFile(path) as file:
      columns = file.schema_arrow.names
      for flag, field in fields.items():
        if field and field not in columns:
          _missing(flag, field, columns, where)
      wanted, row = list(dict.fromkeys(filter(None, fields.values()))), 0
      for batch in file.iter_batches(_ROWS, columns=wanted):
        for record in batch.to_pylist():
          row += 1
          yield _document(record, fields, f'{where} row {row}')
  except pa.ArrowException as e:
    raise UserError(f'{where}: is not Parquet, or damaged ({str(e).splitlines()[0]})') from None


def _document(record: dict, fields: dict[str, str], where: str) -> tuple[str, str]:
  """(group, text); raises UserError, beginning with `where`, if they are not there."""
  for flag, field in fields.items():
    if field and field not in record:
      _missing(flag, field, list(record), where)
  text = record[fields['text_field']]
  if not isinstance(text, str):
    found = {dict: 'an object', list: 'a list', type(None): 'null'}.get(type(text), repr(text))
    raise UserError(f'{where}: --data.text_field={fields["text_field"]} is {found}, not text')
  try:
    text.encode()
  except UnicodeEncodeError:  # JSON may write half of a pair, as in "\ud83d"
    raise UserError(f'{where}: the text holds half of a surrogate pair') from None
  group = fields['group_field']
  return str(record[group]) if group else text, text


def _missing(flag: str, field: str, there: list[str], where: str) -> None:
  shown = ', '.join(there[:12]) or 'none'
  raise UserError(f'{where}: has no field {field!r} (--data.{flag}); it has {shown}')
