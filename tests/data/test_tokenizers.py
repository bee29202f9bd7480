"""Byte for byte there and back; id 0 belongs to no text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

from transformer import spec
from transformer.data import tokenizers

TEXTS = [
  'plain words, twice: plain words',
  '<eos>',
  'before<eos>after <eos>',
  unicodedata.normalize('NFC', '한국어 문장'),
  unicodedata.normalize('NFD', '한국어 문장'),
  'line\r\nline\rline\n\n\n\ttab \t end  ',
  'nul \x00 and \x7f and \u200b and \ufeff',
  '🙂 👩‍👩‍👧 é ﬁ \U0010ffff',
  ' ',
  '',
]


def made(text):
  declared = spec.parse('data.tokenizer', text)
  corpus = ['def f(x):\n  return x + 1\n' * 3, 'words and words and more words', '한국어 문장']
  return tokenizers.TOKENIZERS[declared.variant].train(declared, corpus)


BOTH = pytest.mark.parametrize('name', ['byte', 'bpe(vocab_size=300)'])


def test_bodies_are_the_declared_ones():
  assert set(tokenizers.TOKENIZERS) == set(spec.variants('data.tokenizer'))


@BOTH
def test_round_trip_is_exact(name):
  tokenizer = made(name)
  for text, ids in zip(TEXTS, tokenizer.encode(TEXTS), strict=True):
    assert tokenizer.decode(ids) == text
    assert ids.dtype == np.int32
    assert not len(ids) or 0 < ids.min() <= ids.max() < tokenizer.vocab_size


@BOTH
def test_decode_passes_over_ends_padding_and_unknown_ids(name):
  tokenizer = made(name)
  [ids] = tokenizer.encode(['abc'])
  assert tokenizer.decode([0, *ids[:1], -1, 100000, *ids[1:], 0]) == 'abc'


@BOTH
def test_half_a_character_decodes_to_a_mark(name):
  tokenizer = made(name)
  [ids] = tokenizer.encode(['ø'])
  assert tokenizer.decode(ids[:1]) == '\ufffd'


@BOTH
def test_saved_and_loaded_is_the_same(name, tmp_path):
  tokenizer = made(name)
  (tmp_path / 'tokenizer.json').write_text(tokenizer.to_json(), encoding='utf-8')
  loaded = tokenizers.load(tmp_path / 'tokenizer.json')
  assert loaded.vocab_size == tokenizer.vocab_size
  assert [i.tolist() for i in loaded.encode(TEXTS)] == [i.tolist() for i in tokenizer.encode(TEXTS)]


def test_byte_ids():
  assert tokenizers.Byte().encode(['aÿ'])[0].tolist() == [98, 0xC3 + 1, 0xBF + 1]


def test_bpe_learns_words_and_keeps_id_0_for_the_end():
  tokenizer = made('bpe(vocab_size=280)')
  assert tokenizer.vocab_size == 280
  assert len(tokenizer.encode([' words'])[0]) == 1
  assert json.loads(tokenizer.to_json())['model']['vocab'][tokenizers.EOS] == 0


def test_bpe_stops_where_the_text_has_no_more_pairs():
  declared = spec.parse('data.tokenizer', 'bpe(vocab_size=5000)')
  assert tokenizers.Bpe.train(declared, ['aaaa bbbb']).vocab_size < 300


def test_training_is_reproducible_whatever_the_threads():
  code = (
    'import glob, hashlib, sys, os; from transformer import spec; '
    'from transformer.data.tokenizers import Bpe; '
    'texts = [open(f).read() for f in sorted(glob.glob(os.path.dirname(os.__file__) + "/j*/*.py"))]'
    ' + [open(os.__file__).read()]; '
    'd = spec.parse("data.tokenizer", "bpe(vocab_size=600)"); '
    'print(hashlib.sha256(Bpe.train(d, texts).to_json().encode()).hexdigest())'
  )
  seen = {
    subprocess.run(
      [sys.executable, '-c', code],
      env={**os.environ, 'RAYON_NUM_THREADS': threads, 'PYTHONHASHSEED': threads},
      capture_output=True,
      check=True,
      text=True,
    ).stdout
    for threads in ('1', '2', '3')
  }
  assert len(seen) == 1
