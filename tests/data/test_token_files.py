"""--data.source=tokens: other programs' ids, mapped and never read whole."""

from __future__ import annotations

import os

import numpy as np
import pytest

from transformer import data
from transformer.data import token_files
from transformer.errors import UserError

EOS = 99
SMALL = {'model.vocab_size': 100}


def stream(documents, seed=0, eos=EOS):
  """Documents of 1 to 30 ids below 99, each followed by `eos`, as nanoGPT writes them."""
  rng = np.random.default_rng(seed)
  parts = [np.append(rng.integers(0, 99, rng.integers(1, 30)), eos) for _ in range(documents)]
  return np.concatenate(parts)


def bare(path, ids, dtype='<u2'):
  path.write_bytes(ids.astype(dtype).tobytes())


def with_header(path, ids, magic=20240520, dtype='<u2', count=None):
  header = np.zeros(256, '<i4')
  header[:3] = magic, 1, len(ids) if count is None else count
  path.write_bytes(header.tobytes() + ids.astype(dtype).tobytes())


def source(tmp_path, **more):
  inside = ''.join(f', {k}={v}' for k, v in ({'eos': EOS} | more).items())
  return f"tokens(glob='{tmp_path}/*.bin'{inside})"


def swapped(ids):
  """Straight from the definition: 0 and EOS change places."""
  return [0 if i == EOS else EOS if i == 0 else int(i) for i in ids]


def held_out_tokens(loaded):
  """First tokens of the rows, and what each row predicts."""
  rows = np.concatenate(list(loaded.eval_batches()))
  return [t for row in rows for t in row[1:].tolist() if t >= 0]


def test_nanogpt_train_and_val(make, tmp_path):
  train, val = stream(200), stream(20, seed=1)
  bare(tmp_path / 'train.bin', train)
  bare(tmp_path / 'val.bin', val)
  loaded = data.load(make(**{'data.source': source(tmp_path)}, **SMALL))
  count = (len(train) - 1) // 8
  assert len(loaded.rows) == count
  batch, rows = loaded.train_batch(3), loaded.order(12, 16)
  assert batch.dtype == np.int32
  assert batch.tolist() == [swapped(train[8 * r : 8 * r + 9]) for r in rows]
  assert held_out_tokens(loaded) == swapped(val[1:])
  assert loaded.info['held_out'] == 'files named val'
  assert loaded.tokenizer is None and loaded.held_out_bytes == 0
  assert loaded.info['train_tokens'] == len(train)


def test_the_colon_form_has_gpt2s_end(make, tmp_path):
  bare(tmp_path / 'train.bin', stream(50, eos=50256))
  bare(tmp_path / 'val.bin', stream(50, eos=50256))
  changes = {'data.source': f'tokens:{tmp_path}/*.bin', 'model.vocab_size': 50257}
  loaded = data.load(make(**changes))
  seen = np.concatenate(list(loaded.eval_batches()))
  assert (seen == 0).sum() > 20 and loaded.info['eos'] == 50256


@pytest.mark.parametrize(('magic', 'dtype'), [(20240520, '<u2'), (20240801, '<u4')])
def test_a_header_is_found_and_tells_the_type(make, tmp_path, magic, dtype):
  ids = stream(200)
  (tmp_path / 'bare').mkdir()
  (tmp_path / 'header').mkdir()
  bare(tmp_path / 'bare' / 'a.bin', ids)
  with_header(tmp_path / 'header' / 'a.bin', ids, magic, dtype)
  one, other = (
    data.load(make(**{'data.source': source(tmp_path / kind)}, **SMALL))
    for kind in ('bare', 'header')
  )
  assert np.array_equal(one.train_batch(1), other.train_batch(1))
  assert held_out_tokens(one) == held_out_tokens(other)


def test_without_val_the_last_documents_are_held_out(make, tmp_path):
  files = [stream(100, seed=k) for k in range(3)]
  for k, ids in enumerate(files):
    bare(tmp_path / f'{k}.bin', ids)
  config = make(**{'data.source': source(tmp_path), 'data.held_out': 0.5}, **SMALL)
  loaded = data.load(config)
  total = sum(map(len, files))
  assert 0.45 < loaded.info['held_out_tokens'] / total < 0.501
  assert loaded.info['held_out'] == 'the last documents'
  [first, cut], [rest, last] = loaded.train, loaded.held_out
  assert first.tolist() == files[0].tolist() and last.tolist() == files[2].tolist()
  assert cut[-1] == rest[0] == EOS  # one document's end is the next one's beginning
  assert cut[:-1].tolist() + rest.tolist() == files[1].tolist()


def test_without_an_end_the_last_tokens_are_held_out_and_ids_go_up(make, tmp_path):
  ids = np.arange(1000) % 65  # nanoGPT's characters: 0 is a newline, not a document's end
  bare(tmp_path / 'a.bin', ids)
  loaded = data.load(make(**{'data.source': source(tmp_path, eos=-1), 'model.vocab_size': 66}))
  assert loaded.info['held_out'] == 'the last tokens'
  assert held_out_tokens(loaded) == (ids[901:] + 1).tolist()
  assert loaded.train_batch(0).min() >= 1


def test_wide_ids(make, tmp_path):
  ids = stream(200) + 70_000
  bare(tmp_path / 'a.bin', ids, '<u4')
  changes = {'data.source': source(tmp_path, eos=EOS + 70_000), 'model.vocab_size': 71_000}
  loaded = data.load(make(**changes))  # by the vocabulary
  assert loaded.train_batch(0).max() > 65_536
  narrow = stream(200)
  bare(tmp_path / 'a.bin', narrow, '<u4')
  loaded = data.load(make(**{'data.source': source(tmp_path, bytes=4)}, **SMALL))
  assert loaded.info['train_tokens'] + loaded.info['held_out_tokens'] == len(narrow) + 1


def test_files_are_mapped_and_not_read(make, tmp_path):
  """A sparse file of 8 GB opens in a moment."""
  path = tmp_path / 'train.bin'
  bare(path, stream(100))
  with open(path, 'r+b') as file:
    file.truncate(8 * 2**30)
  bare(tmp_path / 'val.bin', stream(20))
  loaded = data.load(make(**{'data.source': source(tmp_path)}, **SMALL))
  assert len(loaded.rows) == (4 * 2**30 - 1) // 8
  assert loaded.train_batch(5).shape == (4, 9)


def test_fingerprint_follows_names_sizes_and_samples(make, tmp_path, monkeypatch):
  monkeypatch.setattr(token_files, '_SAMPLES', 4)
  monkeypatch.setattr(token_files, '_BLOCK', 16)
  ids = stream(200)
  bare(tmp_path / 'a.bin', ids)
  config = make(**{'data.source': source(tmp_path)}, **SMALL)
  first = data.load(config).fingerprint
  os.utime(tmp_path / 'a.bin', (1, 1))
  assert data.load(config).fingerprint == first
  for place in (0, len(ids) - 1):  # the first sample and the last
    other = ids.copy()
    other[place] = 7 if ids[place] != 7 else 8
    bare(tmp_path / 'a.bin', other)
    assert data.load(config).fingerprint != first
  bare(tmp_path / 'a.bin', np.append(ids, EOS))
  assert data.load(config).fingerprint != first
  longer = config.replace(**{'data.seq_len': 16})
  assert data.load(longer).fingerprint != data.load(config).fingerprint


class TestMistakes:
  def load(self, make, tmp_path, given='', **changes):
    given = given or source(tmp_path)
    with pytest.raises(UserError) as e:
      data.load(make(**({'data.source': given} | SMALL | changes)))
    assert '\n' not in str(e.value)
    return str(e.value)

  def test_no_vocabulary(self, make, tmp_path):
    assert self.load(make, tmp_path, **{'model.vocab_size': 0}) == (
      f'--model.vocab_size=0: --data.source={source(tmp_path)} has no tokenizer to tell it; '
      'set it, as in --model.vocab_size=50257'
    )

  def test_ids_past_the_vocabulary_seen_at_once(self, make, tmp_path):
    bare(tmp_path / 'a.bin', np.append(stream(100), 300))
    assert self.load(make, tmp_path) == (
      f'--data.source={source(tmp_path)}: {tmp_path}/a.bin holds id 300; '
      'with --model.vocab_size=100 the highest is 99'
    )
    bare(tmp_path / 'a.bin', np.full(1000, 99))
    assert self.load(make, tmp_path, source(tmp_path, eos=-1)).endswith(
      'holds id 99; with --model.vocab_size=100 the highest is 98'
    )

  def test_ids_past_the_vocabulary_between_the_samples(self, make, tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, '_SAMPLES', 2)
    monkeypatch.setattr(token_files, '_BLOCK', 4)
    ids = stream(200)
    ids[len(ids) // 2] = 300
    bare(tmp_path / 'a.bin', ids)
    loaded = data.load(make(**{'data.source': source(tmp_path)}, **SMALL))
    with pytest.raises(UserError, match='a file holds id 300; with'):
      for i in range(len(loaded.rows) // 4 + 1):
        loaded.train_batch(i)

  def test_end_past_the_vocabulary(self, make, tmp_path):
    (tmp_path / 'a.bin').write_bytes(bytes(8))
    assert self.load(make, tmp_path, f'tokens:{tmp_path}/*.bin') == (
      f'--data.source=tokens:{tmp_path}/*.bin: eos=50256 is not below --model.vocab_size=100; name '
      f"the id that ends documents, as in tokens('{tmp_path}/*.bin', eos=0), or eos=-1 if none does"
    )

  def test_no_file(self, make, tmp_path):
    assert self.load(make, tmp_path) == f'--data.source={source(tmp_path)}: no file matches'

  def test_size_of_an_id(self, make, tmp_path):
    bare(tmp_path / 'a.bin', stream(9))
    assert self.load(make, tmp_path, source(tmp_path, bytes=3)) == (
      f'--data.source={source(tmp_path, bytes=3)}: bytes=3 should be 2 or 4, '
      'or 0 to go by vocabulary'
    )

  def test_odd_number_of_bytes(self, make, tmp_path):
    (tmp_path / 'a.bin').write_bytes(b'abc')
    assert self.load(make, tmp_path) == (
      f'--data.source={source(tmp_path)}: {tmp_path}/a.bin has 3 bytes, '
      'which are no ids of 2 bytes each'
    )

  def test_file_cut_short(self, make, tmp_path):
    with_header(tmp_path / 'a.bin', np.arange(50), count=60)
    assert self.load(make, tmp_path) == (
      f'--data.source={source(tmp_path)}: {tmp_path}/a.bin says it holds 60 ids, and has 100 bytes '
      'of them; it was cut short or is of another kind'
    )

  def test_less_than_one_batch(self, make, tmp_path):
    bare(tmp_path / 'train.bin', np.arange(20))
    bare(tmp_path / 'val.bin', np.arange(20))
    assert self.load(make, tmp_path) == (
      f'--data.source={source(tmp_path)}: 20 training tokens; one batch of --data.batch_size=4 '
      'rows of --data.seq_len=8 needs 33'
    )
