"""--data.source=synthetic: the benchmark's data, on machines with NumPy and little else."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from transformer import data
from transformer.data import synthetic
from transformer.errors import UserError

SOURCE = {'data.source': 'synthetic(rows=50)', 'model.vocab_size': 97}


def test_ids_cover_the_vocabulary_and_0_ends_documents(make):
  loaded = data.load(make(**SOURCE))
  assert len(loaded.rows) == 50 and len(loaded.train[0]) == 50 * 8 + 1
  [train] = loaded.train
  assert train.min() == 0 and train.max() < 97
  assert np.flatnonzero(train == 0).tolist() == [0, 128, 256, 384]
  assert loaded.tokenizer is None and loaded.held_out_bytes == 0
  assert loaded.train_batch(0).shape == (4, 9)


def test_each_token_leads_to_at_most_eight_half_the_time_to_one():
  tokens = synthetic.chain(200_000, 50, first=0)
  followers = [np.bincount(tokens[1:][tokens[:-1] == t], minlength=50)[1:] for t in (1, 20, 49)]
  for counts in filter(np.sum, followers):
    assert (counts > 0).sum() <= 8
    assert counts.max() / counts.sum() > 0.4


def test_seed_changes_the_order_and_nothing_else(make):
  one, other = data.load(make(**SOURCE)), data.load(make(**SOURCE, seed=1))
  assert one.fingerprint == other.fingerprint
  assert np.array_equal(one.train, other.train)
  for a, b in zip(one.eval_batches(), other.eval_batches(), strict=True):
    assert np.array_equal(a, b)
  assert not np.array_equal(one.train_batch(0), other.train_batch(0))


def test_tokens_are_those_of_plain_integers():
  def mix(x):
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31

  document, vocab, expected = 5, 1000, [0]
  state = mix(document)
  for t in range(1, 128):
    coins = mix(document * 128 + t) % 128
    heads = 7 if not coins else f'{coins:b}'[::-1].index('1')  # the lowest bit set
    state = mix((state * 8 + heads) % 2**64) % (vocab - 1) + 1
    expected.append(state)
  assert synthetic.chain(128, vocab, first=document).tolist() == expected


def test_held_out_documents_are_others(make):
  loaded = data.load(make(**SOURCE))
  assert not np.array_equal(loaded.held_out[0][:9], loaded.train[0][:9])


def test_wide_vocabulary(make):
  loaded = data.load(make(**SOURCE | {'model.vocab_size': 100_000}))
  assert loaded.train[0].dtype == np.uint32 and loaded.train[0].max() > 65536


def test_vocabulary_of_one(make):
  with pytest.raises(UserError) as e:
    data.load(make(**SOURCE | {'model.vocab_size': 1}))
  assert str(e.value) == '--model.vocab_size=1: synthetic data needs at least 2'


class TestPairs:
  """For an encoder-decoder the target is the source from its end on."""

  PAIRS = SOURCE | {'model.architecture': 'encoder_decoder', 'data.source_len': 12}

  @pytest.mark.parametrize(('source_len', 'seq_len', 'longest'), [(12, 8, 7), (3, 8, 3), (1, 2, 1)])
  def test_targets_are_reversed_sources(self, make, source_len, seq_len, longest):
    sizes = {'data.source_len': source_len, 'data.seq_len': seq_len}
    loaded = data.load(make(**self.PAIRS | sizes))
    rows = loaded.rows[np.arange(len(loaded.rows))]
    held_out = np.concatenate(list(loaded.eval_batches()))[:5]
    assert rows.shape == (50, source_len + seq_len + 1) and held_out.shape[0] == 5
    seen = set()
    for row in (*rows, *held_out):
      source = row[:source_len][row[:source_len] >= 0].tolist()
      target = [0, *source[::-1], 0]
      assert row[source_len:].tolist() == target + [-1] * (seq_len + 1 - len(target))
      assert all(0 < token < 97 for token in source)
      seen.add(len(source))
    assert seen == set(range(longest - longest // 2, longest + 1))
    assert (loaded.tokenizer, loaded.held_out_bytes, loaded.held_out_texts()) == (None, 0, [])
    assert loaded.source_len == source_len and loaded.info['train_pairs'] == 50

  def test_tokens_are_the_chains(self, make):
    loaded = data.load(make(**self.PAIRS))
    stream, chain = loaded.train[0], synthetic.chain(2000, 97, first=0)
    ends = np.flatnonzero(stream == 0)
    sources = [stream[a + 1 : b] for a, b in zip(ends[:-1:2], ends[1::2], strict=True)]
    joined = np.concatenate(sources)
    assert np.array_equal(joined, chain[chain > 0][: len(joined)]) and len(joined) > 200

  def test_seed_changes_the_order_and_lengths_the_rows(self, make):
    one, other = data.load(make(**self.PAIRS)), data.load(make(**self.PAIRS, seed=1))
    assert one.fingerprint == other.fingerprint
    assert not np.array_equal(one.train_batch(0), other.train_batch(0))
    assert data.load(make(**self.PAIRS | {'data.source_len': 9})).fingerprint != one.fingerprint

  def test_a_target_and_its_end_need_two(self, make):
    with pytest.raises(UserError) as e:
      data.load(make(**self.PAIRS | {'data.seq_len': 1}))
    assert str(e.value) == '--data.seq_len=1: a synthetic target and its end need at least 2'


@pytest.mark.parametrize(('kind', 'width'), [('decoder', 257), ('encoder_decoder', 513)])
def test_needs_nothing_but_numpy_and_writes_nothing(tmp_path, kind, width):
  code = """
import sys
for name in ('grain', 'tensorflow_datasets', 'tokenizers', 'array_record', 'jax'):
  sys.modules[name] = None
from transformer import data
from transformer.config import Config, resolve
settings = {'data.source': 'synthetic', 'data.cache': sys.argv[1]}
settings |= {'model.architecture': sys.argv[2]}
loaded = data.load(resolve(Config().replace(**settings)))
print(loaded.train_batch(5).shape, len(list(loaded.eval_batches())))
"""
  out = subprocess.run(
    [sys.executable, '-c', code, f'{tmp_path}/cache', kind], capture_output=True, text=True
  )
  assert (out.stdout, out.stderr) == (f'(16, {width}) 26\n', '')
  assert not (tmp_path / 'cache').exists()
