"""Pairs: files to rows, what does not fit, the split, the cache, and every mistake's line."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

from tests.data.test_tokenizers import bert
from transformer import data
from transformer.config import Config, resolve
from transformer.config.data import check_source
from transformer.data import packed, pairs
from transformer.errors import UserError

SHORT = {'model.architecture': 'encoder_decoder', 'data.source_len': 10, 'data.seq_len': 8}


@pytest.fixture
def told(make, tmp_path):
  """told(lines, **changes) -> a config whose source is a file of these lines."""

  def config(lines, **changes):
    (tmp_path / 'a.tsv').write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8')
    return make(**{'data.source': f'pairs:{tmp_path}/a.tsv'} | SHORT | changes)

  return config


@pytest.fixture
def load(told):
  """load(lines, **changes) -> the data of a file of these lines."""
  return lambda *lines, **changes: data.load(told(*lines, **changes))


def some(count):
  """Pairs of which a third has a source, and another a target, that is too long for `load`."""
  for k in range(count):
    yield f'{k:03}{"s" * (k % 3 == 1) * 8}\t{"ABCDEFG"[: 2 + k % 5]}{"t" * (k % 3 == 2) * 6}{k:03}'


def fits(line):
  source, target = line.split('\t')
  return len(source.encode()) <= 10 and len(target.encode()) + 1 <= 8


def split_row(row, source_len=10):
  """Ids of a source and of its target, which has to be 0 target 0."""
  source, target = row[:source_len], row[source_len:]
  assert np.all(np.diff((source < 0).astype(int)) >= 0), 'padding is at the end'
  target = target[target >= 0]
  assert target[0] == target[-1] == 0 and 0 not in target[1:-1] and 0 not in source
  return source[source >= 0], target[1:-1]


def lines_of(loaded, rows):
  """The lines that rows stand for."""
  sides = (split_row(row, loaded.source_len) for row in rows)
  return ['\t'.join(map(loaded.tokenizer.decode, side)) for side in sides]


def test_rows_are_a_source_and_a_target_between_two_ends():
  stream = np.array([0, 5, 6, 0, 7, 0, 8, 0, 9, 10, 11, 0], np.uint16)
  ends = np.flatnonzero(stream == 0)
  config = Config().replace(**{'data.source_len': 3, 'data.seq_len': 4})
  rows = pairs.PairRows(stream, ends, np.array([2, 10, 3, 30]), config)
  got = rows[np.array([1, 0, 1])]
  one, other = [5, 6, -1, 0, 7, 0, -1, -1], [8, -1, -1, 0, 9, 10, 11, 0]
  assert got.tolist() == [other, one, other] and got.dtype == np.int32
  facts = {'pairs': 2, 'pairs_too_long': 0, 'source_tokens': 3, 'tokens': 6, 'bytes': 40}
  assert rows.counts == facts
  short = pairs.PairRows(stream, ends, None, config.replace(**{'data.seq_len': 3}))
  assert short[np.arange(1)].tolist() == [[5, 6, -1, 0, 7, 0, -1]]
  facts = {'pairs': 1, 'pairs_too_long': 1, 'source_tokens': 2, 'tokens': 2, 'bytes': 0}
  assert short.counts == facts


def test_what_fits_is_there_whole_and_on_one_side(load):
  lines = list(some(150))
  loaded = load(lines)
  train = lines_of(loaded, loaded.rows[np.arange(len(loaded.rows))])
  held_out = ['\t'.join(pair) for pair in loaded.held_out_texts()]
  assert sorted(train + held_out) == sorted(filter(fits, lines))
  info = loaded.info
  assert info['documents'] == info['groups'] == 150
  assert (info['train_pairs'], info['held_out_pairs']) == (len(train), len(held_out))
  left_out = info['train_pairs_too_long'] + info['held_out_pairs_too_long']
  assert left_out == 150 - len(list(filter(fits, lines))) > 90
  targets = [line.split('\t')[1] for line in held_out]
  assert loaded.held_out_bytes == info['held_out_bytes'] == sum(map(len, targets))
  assert info['train_source_tokens'] == sum(len(line.split('\t')[0]) for line in train)


def test_held_out_rows_are_in_the_order_of_their_texts_and_count_the_end(load):
  loaded = load(some(400))
  batches_ = list(loaded.eval_batches())
  assert len(batches_) == loaded.eval_batch_count and len(loaded.held_out_texts()) > 4
  rows = np.concatenate(batches_)
  assert {b.shape for b in batches_} == {(4, 10 + 8 + 1)} and rows.dtype == np.int32
  count = len(loaded.held_out_texts())
  assert lines_of(loaded, rows[:count]) == ['\t'.join(p) for p in loaded.held_out_texts()]
  assert (rows[count:] == -1).all() and len(rows) - count < 4
  targets = rows[:, loaded.source_len + 1 :]
  assert (targets >= 0).sum() == loaded.held_out_bytes + count == loaded.info['held_out_tokens']


def test_an_epoch_visits_each_pair_once_and_processes_share_its_batches(load):
  loaded = load(some(150))
  count = len(loaded.rows)
  assert sorted(loaded.order(0, count).tolist()) == list(range(count))
  for i in (0, 7, 300):
    whole = loaded.train_batch(i)
    assert whole.shape == (4, 19)
    parts = [loaded.train_batch(i, p, 2) for p in range(2)]
    assert np.array_equal(np.concatenate(parts), whole)
  again, other = load(some(150)), load(some(150), seed=1)
  assert np.array_equal(again.train_batch(300), loaded.train_batch(300))
  assert other.fingerprint == loaded.fingerprint
  assert not np.array_equal(other.train_batch(300), loaded.train_batch(300))


def test_packed_once_for_all_lengths(told, monkeypatch):
  config = told(some(150))
  first = data.load(config)
  monkeypatch.setattr(packed, '_pack', lambda *a: pytest.fail('packed again'))
  wide = data.load(config.replace(**{'data.source_len': 20, 'data.seq_len': 20}))
  assert wide.info['train_pairs_too_long'] == wide.info['held_out_pairs_too_long'] == 0
  assert wide.train_batch(0).shape == (4, 41)
  others = [config.replace(**{name: 12}) for name in ('data.source_len', 'data.seq_len')]
  assert len({d.fingerprint for d in (first, wide, *map(data.load, others))}) == 4


def test_source_len_0_is_seq_len(load):
  assert load(some(150), **{'data.source_len': 0}).train_batch(0).shape == (4, 17)


def test_one_source_lies_on_one_side(load):
  loaded = load(f'{k % 30}\tt{k}' for k in range(300))
  train = lines_of(loaded, loaded.rows[np.arange(len(loaded.rows))])
  sides = {line.split('\t')[0] for line in train}, {s for s, _ in loaded.held_out_texts()}
  assert loaded.info['groups'] == 30 and all(sides) and not sides[0] & sides[1]
  assert loaded.info['held_out_pairs'] == 10 * loaded.info['held_out_groups']


def test_one_tokenizer_is_trained_on_both_sides_of_training_pairs(load):
  name = {'data.tokenizer': 'bpe(vocab_size=290)', 'data.source_len': 40, 'data.seq_len': 40}
  lines = [f'ask {k} sesame\tanswer {k} poppy' for k in range(80)]
  first = load(lines, **name)
  assert [len(ids) for ids in first.tokenizer.encode([' sesame', ' poppy'])] == [1, 1]
  held_out = '\t'.join(first.held_out_texts()[0])
  changed = [line.replace('poppy', 'zyzzyva' * 4) if line == held_out else line for line in lines]
  second = load(changed, **name)
  assert second.tokenizer.to_json() == first.tokenizer.to_json()
  assert second.fingerprint != first.fingerprint


def test_escapes_and_line_ends(load):
  texts = [('a\tb', 'c\nd'), ('\\t', '\\'), ('x\ry', '\\n\n'), (' a ', '\\x')]
  write = str.maketrans({'\t': r'\t', '\n': r'\n', '\r': r'\r', '\\': r'\\'})
  lines = ['\t'.join(side.translate(write) for side in pair) for pair in texts]
  loaded = load([*lines[:2], lines[2] + '\r', ' a \t\\x'], **{'data.batch_size': 1})
  rows = loaded.rows[np.arange(len(loaded.rows))]
  train = [tuple(map(loaded.tokenizer.decode, split_row(row))) for row in rows]
  assert sorted(train + loaded.held_out_texts()) == sorted(texts)


def test_several_files_and_gz(make, tmp_path):
  lines = list(some(120))
  (tmp_path / 'a.tsv').write_text('\n'.join(lines[:70]))
  with gzip.open(tmp_path / 'b.tsv.gz', 'wt') as file:
    file.write('\n'.join(lines[70:]))
  loaded = data.load(make(**{'data.source': f'pairs:{tmp_path}/*.tsv*'} | SHORT))
  assert loaded.info['documents'] == 120 and loaded.info['files'] == 2


@pytest.mark.parametrize('name', ['byte', 'bpe(vocab_size=300)', 'wordpiece(vocab_size=560)'])
def test_hangul_in_both_forms_comes_back_as_it_was(load, name):
  sides = {f: unicodedata.normalize(f, '한글 처리') for f in ('NFC', 'NFD')}
  lines = [f'{sides[f]} {k}\t{k} {sides[f]}' for k in range(60) for f in sides]
  wide = {'data.tokenizer': name, 'data.source_len': 60, 'data.seq_len': 60}
  loaded = load(lines, **wide)
  train = lines_of(loaded, loaded.rows[np.arange(len(loaded.rows))])
  held_out = ['\t'.join(pair) for pair in loaded.held_out_texts()]
  assert sorted(train + held_out) == sorted(lines)  # neither form became the other
  assert loaded.held_out_bytes == sum(len(t.encode()) for _, t in loaded.held_out_texts())
  assert loaded.info['held_out_lossy_documents'] == 0


def test_texts_are_the_originals_whatever_the_tokenizer_makes_of_them(load, tmp_path):
  bert().save(str(tmp_path / 't.json'))
  lines = [f'Plain {k}\tWORDS {k}' for k in range(60)]
  wide = {'data.source_len': 30, 'data.seq_len': 30}
  loaded = load(lines, **wide | {'data.tokenizer': f'json:{tmp_path}/t.json'})
  assert {'\t'.join(pair) for pair in loaded.held_out_texts()} < set(lines)
  assert loaded.info['held_out_lossy_documents'] > 0


def test_opening_is_light(told):
  config = told(some(150))
  loaded = data.load(config)
  code = (
    'import sys, json; from transformer import data; from transformer.config import Config; '
    'loaded = data.load(Config.from_json(json.loads(sys.argv[1]))); '
    "heavy = [m for m in ('jax', 'grain', 'tensorflow_datasets') if m in sys.modules]; "
    'print(loaded.fingerprint, len(loaded.held_out_texts()), heavy)'
  )
  out = subprocess.run(
    [sys.executable, '-c', code, json.dumps(config.to_json())], capture_output=True, text=True
  )
  expected = f'{loaded.fingerprint} {len(loaded.held_out_texts())} []\n'
  assert (out.stdout, out.stderr) == (expected, '')


class TestMistakes:
  def error(self, call, *args, **changes):
    with pytest.raises(UserError) as e:
      call(*args, **changes)
    assert '\n' not in str(e.value)
    return str(e.value)

  @pytest.mark.parametrize(
    ('line', 'message'),
    [
      (b'no tab', 'has 0 tabs; it should be source, tab, target, with \\t for a tab within them'),
      (b'', 'has 0 tabs; it should be source, tab, target, with \\t for a tab within them'),
      (b'a\tb\tc', 'has 2 tabs; it should be source, tab, target, with \\t for a tab within them'),
      (b'\tb', 'has an empty source; fill it in or leave the line out'),
      (b'a\t \r', 'has an empty target; fill it in or leave the line out'),
      ('é\tb'.encode('latin-1'), 'is not UTF-8; convert the file'),
    ],
  )
  def test_a_line_that_is_no_pair(self, make, tmp_path, line, message):
    path = tmp_path / 'a.tsv'
    path.write_bytes(b'a\tb\nc\td\n' + line + b'\ne\tf\n')
    told = self.error(data.load, make(**{'data.source': f'pairs:{path}'} | SHORT))
    assert told == f'--data.source=pairs:{path}: {path} line 3 {message}'
    assert not list((tmp_path / 'cache').rglob('*.partial'))

  def test_damaged_archive(self, make, tmp_path):
    path = tmp_path / 'a.tsv.gz'
    path.write_bytes(gzip.compress(b'a\tb\n' * 1000)[:-20])
    told = self.error(data.load, make(**{'data.source': f'pairs:{path}'} | SHORT))
    assert told.startswith(f'--data.source=pairs:{path}: {path}: the archive is damaged after line')

  def test_too_few(self, load, tmp_path):
    flag = f'--data.source=pairs:{tmp_path}/a.tsv'
    split = 'at least 2 are needed, one of them to hold out'
    assert self.error(load, []) == f'{flag}: 0 pair(s); {split}'
    assert self.error(load, ['a\tb']) == f'{flag}: 1 pair(s); {split}'
    assert self.error(load, ['a\tb', 'a\tc']) == f'{flag}: 1 group of pairs; {split}'
    fitting = '--data.source_len=10 and --data.seq_len=8'
    assert self.error(load, [f'{k}\tb' for k in range(4)]) == (
      f'{flag}: 3 of 3 training pairs fit {fitting}; one batch needs --data.batch_size=4'
    )

  def test_none_fits(self, load, tmp_path):
    told = self.error(load, [f'{k:03}\t{"long " * 4}' for k in range(100)])
    assert told == (
      f'--data.source=pairs:{tmp_path}/a.tsv: none of the {told.split()[4]} training pairs fits '
      '--data.source_len=10 and --data.seq_len=8; their medians are 3 and 21 tokens'
    )
    assert 80 < int(told.split()[4]) < 100

  def test_none_of_the_held_out_fits(self, load):
    held_out = {s for s, _ in load(f'{k:03}\tt' for k in range(100)).held_out_texts()}
    lines = (f'{k:03}\t{"t" * (30 if f"{k:03}" in held_out else 1)}' for k in range(100))
    told = self.error(load, lines)
    assert f'none of the {len(held_out)} held-out pairs fits --data.source_len=10' in told

  def test_a_source_without_pairs(self):
    for source in ('text:*.txt', 'jsonl:a', 'parquet:a', 'tokens:a', 'mix:stdlib=1'):
      config = Config().replace(**SHORT | {'data.source': source})
      assert self.error(check_source, config) == (
        f'--data.source={source}: gives no pairs of a source and a target, which '
        '--model.architecture=encoder_decoder learns from; take stdlib, pairs:FILE.tsv or '
        'tfds:NAME of a set of translations'
      )
    for source in ('stdlib', 'pairs:a.tsv', 'tfds:a', 'synthetic'):
      check_source(Config().replace(**SHORT | {'data.source': source}))

  def test_pairs_for_another_architecture(self):
    for kind in ('decoder', 'encoder'):
      told = {'model.architecture': kind, 'data.source': 'pairs:a.tsv'}
      assert self.error(check_source, Config().replace(**told)) == (
        '--data.source=pairs:a.tsv: gives pairs of a source and a target, which '
        f'--model.architecture={kind} does not learn from; take encoder_decoder, or a source of '
        'text'
      )
      for source in ('stdlib', 'text:a', 'mix:stdlib=1', 'tfds:a', 'tokens:a', 'synthetic'):
        check_source(Config().replace(**told | {'data.source': source}))

  def test_a_mixture_of_pairs(self):
    told = Config().replace(**{'data.source': 'mix:stdlib=1,pairs:a.tsv=1'})
    assert self.error(resolve, told) == (
      '--data.source=mix:stdlib=1,pairs:a.tsv=1: pairs:a.tsv cannot be part of a mixture; sources '
      'of text can'
    )

  def test_damaged_cache(self, told, tmp_path):
    config = told(some(150))
    data.load(config)
    [file] = (tmp_path / 'cache').rglob('train_ends.npy')
    file.write_bytes(b'')
    assert self.error(data.load, config).startswith(f'--data.cache: {file.parent} is damaged (')
