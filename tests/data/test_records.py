"""--data.source=jsonl and parquet: fields, groups, archives, and every mistake's line."""

from __future__ import annotations

import gzip
import json

import pytest

from transformer import data
from transformer.errors import UserError

RECORDS = [
  {'id': k, 'body': f'document {k}: ' + 'some words ' * 20, 'author': f'a{k % 12}'}
  for k in range(120)
]
FIELDS = {'data.text_field': 'body'}


def write(path, records=RECORDS):
  """As JSON Lines, packed or not, or Parquet, by the name."""
  if path.suffix == '.parquet':
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(records), path, row_group_size=50)
    return f'parquet:{path}'
  text = ''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in records).encode()
  path.write_bytes(gzip.compress(text) if path.suffix == '.gz' else text)
  return f'jsonl:{path}'


def texts(loaded, side):
  return ''.join(map(loaded.tokenizer.decode, getattr(loaded, side)))


NAMES = pytest.mark.parametrize('name', ['a.jsonl', 'a.jsonl.gz', 'a.parquet'])


@NAMES
def test_each_document_is_whole_on_one_side(make, tmp_path, name):
  loaded = data.load(make(**{'data.source': write(tmp_path / name)}, **FIELDS))
  train, held_out = texts(loaded, 'train'), texts(loaded, 'held_out')
  for record in RECORDS:
    assert (record['body'] in train) != (record['body'] in held_out)
  assert loaded.info['documents'] == loaded.info['groups'] == 120
  assert loaded.info['files'] == 1 and loaded.info['text_field'] == 'body'
  assert loaded.held_out_bytes == len(held_out)


@NAMES
def test_a_group_is_held_out_whole(make, tmp_path, name):
  more = {'data.group_field': 'author', 'data.held_out': 0.3}
  loaded = data.load(make(**{'data.source': write(tmp_path / name)}, **FIELDS, **more))
  train = texts(loaded, 'train')
  for author in {r['author'] for r in RECORDS}:
    own = [r['body'] in train for r in RECORDS if r['author'] == author]
    assert all(own) or not any(own)
  assert loaded.info['groups'] == 12 and 1 <= loaded.info['held_out_groups'] < 12


def test_formats_give_the_same_rows(make, tmp_path):
  sources = [write(tmp_path / name) for name in ('a.jsonl', 'a.jsonl.gz', 'a.parquet')]
  seen = {data.load(make(**{'data.source': s}, **FIELDS)).fingerprint for s in sources}
  assert len(seen) == 1


def test_copies_of_a_text_lie_on_one_side(make, tmp_path):
  loaded = data.load(make(**{'data.source': write(tmp_path / 'a.jsonl', RECORDS * 2)}, **FIELDS))
  train, held_out = texts(loaded, 'train'), texts(loaded, 'held_out')
  assert all(train.count(r['body']) + held_out.count(r['body']) == 2 for r in RECORDS)
  assert all(train.count(r['body']) in (0, 2) for r in RECORDS)


def test_several_files_blank_lines_and_empty_texts(make, tmp_path):
  write(tmp_path / 'a.jsonl', RECORDS[:60])
  write(tmp_path / 'b.jsonl.gz', RECORDS[60:])
  (tmp_path / 'c.jsonl').write_text('\n\n{"body": ""}\n  \n')
  loaded = data.load(make(**{'data.source': f'jsonl:{tmp_path}/*.jsonl*'}, **FIELDS))
  assert loaded.info['documents'] == 120 and loaded.info['files'] == 3


def test_another_field_is_another_corpus(make, tmp_path):
  source = write(tmp_path / 'a.jsonl', [r | {'text': r['body'].upper()} for r in RECORDS])
  one, other = (
    data.load(make(**{'data.source': source, 'data.text_field': f})) for f in ('text', 'body')
  )
  assert one.fingerprint != other.fingerprint


class TestMistakes:
  def load(self, make, source, **changes):
    with pytest.raises(UserError) as e:
      data.load(make(**{'data.source': source}, **(FIELDS | changes)))
    assert '\n' not in str(e.value)
    return str(e.value)

  def line(self, make, tmp_path, line, **changes):
    """The message for a third line of these bytes, less what names the file."""
    source, path = write(tmp_path / 'a.jsonl', RECORDS[:2]), tmp_path / 'a.jsonl'
    path.write_bytes(path.read_bytes() + line + b'\n')
    message = self.load(make, source, **changes)
    start = f'--data.source={source}: {path} line 3'
    assert message.startswith(start)
    return message.removeprefix(start)

  def test_no_file(self, make, tmp_path):
    for kind in ('jsonl', 'parquet'):
      source = f'{kind}:{tmp_path}/*.x'
      assert self.load(make, source) == f'--data.source={source}: no file matches'

  @pytest.mark.parametrize(
    ('line', 'message'),
    [
      (b'{"body": "a"', " is not JSON (Expecting ',' delimiter)"),
      (b'[1]', ' should be an object with fields, as in {"text": "…"}'),
      (b'"text"', ' should be an object with fields, as in {"text": "…"}'),
      (b'{"text": "a", "id": 3}', ": has no field 'body' (--data.text_field); it has text, id"),
      (b'{}', ": has no field 'body' (--data.text_field); it has none"),
      (b'{"body": ["a"]}', ': --data.text_field=body is a list, not text'),
      (b'{"body": null}', ': --data.text_field=body is null, not text'),
      (b'{"body": 3}', ': --data.text_field=body is 3, not text'),
      (b'{"body": "\\ud83d"}', ': the text holds half of a surrogate pair'),
      ('{"body": "é"}'.encode('latin-1'), ' is not UTF-8; convert the file'),
    ],
  )
  def test_a_bad_line(self, make, tmp_path, line, message):
    assert self.line(make, tmp_path, line) == message

  def test_no_group(self, make, tmp_path):
    assert self.line(
      make, tmp_path, b'{"body": "a", "id": 1}', **{'data.group_field': 'author'}
    ) == (": has no field 'author' (--data.group_field); it has body, id")

  def test_one_group(self, make, tmp_path):
    source = write(tmp_path / 'a.jsonl', [r | {'author': 'x'} for r in RECORDS])
    assert self.load(make, source, **{'data.group_field': 'author'}) == (
      f'--data.source={source}: 1 group of documents; at least 2 are needed, '
      'one of them to hold out'
    )

  def test_nothing_but_blank_lines(self, make, tmp_path):
    (tmp_path / 'a.jsonl').write_text('\n\n')
    assert self.load(make, f'jsonl:{tmp_path}/a.jsonl') == (
      f'--data.source=jsonl:{tmp_path}/a.jsonl: 0 document(s) with text; at least 2 are needed, '
      'one of them to hold out'
    )

  def test_empty_field_name(self, make, tmp_path):
    source = write(tmp_path / 'a.jsonl')
    assert self.load(make, source, **{'data.text_field': ''}) == (
      '--data.text_field: is empty; name the field of the text'
    )

  def test_damaged_archive(self, make, tmp_path):
    source, path = write(tmp_path / 'a.jsonl.gz'), tmp_path / 'a.jsonl.gz'
    path.write_bytes(path.read_bytes()[:-20])
    message = self.load(make, source)
    assert message.startswith(f'--data.source={source}: {path}: the archive is damaged after line')
    path.write_bytes(b'{"body": "not packed"}\n')
    assert self.load(make, source).endswith('the archive is damaged after line 0')

  def test_not_parquet(self, make, tmp_path):
    path = tmp_path / 'a.parquet'
    path.write_text('{"body": "a"}')
    message = self.load(make, f'parquet:{path}')
    assert message.startswith(f'--data.source=parquet:{path}: {path}: is not Parquet, or damaged (')

  def test_no_such_column(self, make, tmp_path):
    source, path = write(tmp_path / 'a.parquet'), tmp_path / 'a.parquet'
    assert self.load(make, source, **{'data.text_field': 'text'}) == (
      f"--data.source={source}: {path}: has no field 'text' (--data.text_field); "
      'it has id, body, author'
    )

  def test_column_of_numbers(self, make, tmp_path):
    source, path = write(tmp_path / 'a.parquet'), tmp_path / 'a.parquet'
    assert self.load(make, source, **{'data.text_field': 'id'}) == (
      f'--data.source={source}: {path} row 1: --data.text_field=id is 0, not text'
    )
