"""Byte for byte there and back; id 0 belongs to no text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import unicodedata

import numpy as np
import pytest

from transformer import data, spec
from transformer.data import tokenizers
from transformer.errors import UserError

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
  return tokenizers.TOKENIZERS[declared.variant](declared, corpus)


ALL = pytest.mark.parametrize('name', ['byte', 'bpe(vocab_size=300)', 'wordpiece(vocab_size=560)'])


def test_bodies_are_the_declared_ones():
  assert set(tokenizers.TOKENIZERS) == set(spec.variants('data.tokenizer'))


@ALL
def test_round_trip_is_exact(name):
  tokenizer = made(name)
  for text, ids in zip(TEXTS, tokenizer.encode(TEXTS), strict=True):
    assert tokenizer.decode(ids) == text
    assert ids.dtype == np.int32
    assert not len(ids) or 0 < ids.min() <= ids.max() < tokenizer.vocab_size


@ALL
def test_decode_passes_over_ends_padding_and_unknown_ids(name):
  tokenizer = made(name)
  [ids] = tokenizer.encode(['abc'])
  assert tokenizer.decode([0, *ids[:1], -1, 100000, *ids[1:], 0]) == 'abc'


@ALL
def test_half_a_character_decodes_to_a_mark(name):
  tokenizer = made(name)
  [ids] = tokenizer.encode(['ø'])
  assert tokenizer.decode(ids[:1]) == '\ufffd'


@ALL
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
  assert tokenizers.bpe(declared, ['aaaa bbbb']).vocab_size < 300


def test_training_is_reproducible_whatever_the_threads():
  code = (
    'import glob, hashlib, sys, os; from transformer import spec; '
    'from transformer.data.tokenizers import bpe; '
    'texts = [open(f).read() for f in sorted(glob.glob(os.path.dirname(os.__file__) + "/j*/*.py"))]'
    ' + [open(os.__file__).read()]; '
    'd = spec.parse("data.tokenizer", "bpe(vocab_size=600)"); '
    'print(hashlib.sha256(bpe(d, texts).to_json().encode()).hexdigest())'
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


class TestWordPiece:
  """A corpus that knows 'un', 'afford' within words and 'able', but not two of them together."""

  WORDS = (
    'un unable unfold unlike unwell undo reaffords reafforded misafford overafford outafford '
    'doable foldable likable readable breakable walkable able'
  )

  def made(self, size=640):
    declared = spec.parse('data.tokenizer', f'wordpiece(vocab_size={size})')
    words = self.WORDS.split()
    texts = [word + chr(10) for word in words for _ in range(9)] + [' '.join(words)] * 9
    return tokenizers.wordpiece(declared, texts)

  def test_unaffordable(self):
    tokenizer = self.made()
    assert tokenizer.pieces('unaffordable') == ['un', 'afford', 'able']
    assert tokenizer.pieces(' unaffordable') == [' un', 'afford', 'able']

  def test_longest_match_first(self):
    """Against the definition: from the left, the longest entry of its kind."""
    tokenizer = self.made()
    vocab = json.loads(tokenizer.to_json())['model']['vocab']
    for word in ('unaffordable', 'overfoldable', 'xyz', 'walkingly', 'un'):
      expected, rest, mark = [], word, ''
      while rest:
        length = next(n for n in range(len(rest), 0, -1) if mark + rest[:n] in vocab)
        expected.append(vocab[mark + rest[:length]])
        rest, mark = rest[length:], tokenizers.INSIDE
      assert tokenizer.encode([word])[0].tolist() == expected

  def test_vocabulary_is_as_large_as_asked_and_writes_every_byte(self):
    declared = spec.parse('data.tokenizer', 'wordpiece(vocab_size=513)')
    tokenizer = tokenizers.wordpiece(declared, ['a b ab'])
    assert tokenizer.vocab_size == 513  # 256 bytes at either place, and the end
    text = bytes(range(128)).decode() + 'é한🙂' * 50
    assert tokenizer.decode(tokenizer.encode([text])[0]) == text
    assert self.made(580).vocab_size == 580

  def test_long_words_take_no_longer_than_their_length(self):
    tokenizer, text = self.made(), 'x' * 300_000
    start = time.perf_counter()
    [ids] = tokenizer.encode([text])
    assert time.perf_counter() - start < 5  # 0.2 s on two idle cores; by the square of it, hours
    assert tokenizer.decode(ids) == text


def trained(model, trainer, **parts):
  """A tokenizer of Hugging Face's library, on a little text."""
  from tokenizers import Tokenizer

  made = Tokenizer(model)
  for name, part in parts.items():
    setattr(made, name, part)
  made.train_from_iterator(['Plain words, twice: plain words.'] * 9, trainer)
  return made


def gpt2(last='<|endoftext|>'):
  """Byte-level, its end the last id, as in GPT-2's file."""
  from tokenizers import decoders, models, pre_tokenizers, trainers

  signs = pre_tokenizers.ByteLevel.alphabet()
  made = trained(
    models.BPE(),
    trainers.BpeTrainer(initial_alphabet=signs, vocab_size=280, show_progress=False),
    pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False),
    decoder=decoders.ByteLevel(),
  )
  if last:
    made.add_special_tokens([last])
  return made


def bert():
  """Lower-cased, with unknown characters, markers around, and [SEP] for an end."""
  from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

  special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]']
  made = trained(
    models.WordPiece(unk_token='[UNK]'),
    trainers.WordPieceTrainer(special_tokens=special, vocab_size=60, show_progress=False),
    normalizer=normalizers.BertNormalizer(lowercase=True),
    pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
    decoder=decoders.WordPiece(),
  )
  made.post_processor = processors.BertProcessing(('[SEP]', 3), ('[CLS]', 2))
  made.enable_truncation(3)
  made.enable_padding()
  return made


def unigram():
  """SentencePiece's kind, without an end token among those added."""
  from tokenizers import decoders, models, pre_tokenizers, trainers

  return trained(
    models.Unigram(),
    trainers.UnigramTrainer(
      vocab_size=40, special_tokens=['<unk>'], unk_token='<unk>', show_progress=False
    ),
    pre_tokenizer=pre_tokenizers.Metaspace(),
    decoder=decoders.Metaspace(),
  )


class TestFile:
  """json:path: ids rearranged so that 0 ends a document, whatever the file has there."""

  def opened(self, tmp_path, made):
    made.save(str(tmp_path / 'tokenizer.json'))
    declared = spec.parse('data.tokenizer', f'json:{tmp_path}/tokenizer.json')
    tokenizer = tokenizers.from_file(declared, [])
    assert declared.vocab_size == tokenizer.vocab_size
    return tokenizer

  def test_end_and_0_change_places(self, tmp_path):
    made = gpt2()
    tokenizer, end = self.opened(tmp_path, made), made.token_to_id('<|endoftext|>')
    assert end == tokenizer.vocab_size - 1 > 0
    first = made.id_to_token(0)
    text = f'plain {first} words <|endoftext|>{first}'
    made.encode_special_tokens = True
    ids, [ours] = made.encode(text).ids, tokenizer.encode([text])
    assert ids.count(0) == 2 and end not in ids
    assert ours.tolist() == [end if i == 0 else i for i in ids]
    assert tokenizer.decode(ours) == text

  def test_without_an_end_ids_go_up_by_one(self, tmp_path):
    for made in (gpt2(last=''), unigram()):
      tokenizer = self.opened(tmp_path, made)
      assert tokenizer.vocab_size == made.get_vocab_size() + 1
      ours = tokenizer.encode(['plain words'])[0]
      assert ours.tolist() == [i + 1 for i in made.encode('plain words').ids]
      assert tokenizer.decode(ours) == 'plain words'

  def test_markers_truncation_and_padding_are_left_out(self, tmp_path):
    tokenizer = self.opened(tmp_path, bert())
    long, short = tokenizer.encode(['plain words twice plain words', 'words'])
    assert len(long) > len(short) and not {0, 2} & set(long.tolist())
    assert tokenizer.decode(long) == 'plain words twice plain words'

  def test_unknown_tokens_have_an_id(self, tmp_path):
    tokenizer = self.opened(tmp_path, bert())
    [ids] = tokenizer.encode(['words 한 words'])
    assert (ids == tokenizer.unknown).sum() == 1
    assert self.opened(tmp_path, unigram()).unknown == 1
    assert self.opened(tmp_path, gpt2()).unknown is None

  def test_text_cannot_end_a_document(self, tmp_path):
    """A model may have its end as a word that text can match."""
    from tokenizers import AddedToken, Tokenizer, models

    made = Tokenizer(models.WordLevel({'</s>': 0, 'x': 1}, unk_token='x'))
    made.add_special_tokens([AddedToken('</s>')])
    assert 0 not in self.opened(tmp_path, made).encode(['</s>'])[0]

  @pytest.mark.parametrize('make_one', [gpt2, bert, unigram])
  def test_a_run_saves_it_and_reads_it_back(self, tmp_path, make_one):
    tokenizer = self.opened(tmp_path, make_one())
    (tmp_path / 'saved.json').write_text(tokenizer.to_json(), encoding='utf-8')
    loaded = tokenizers.load(tmp_path / 'saved.json')
    assert loaded.vocab_size == tokenizer.vocab_size and loaded.unknown == tokenizer.unknown
    text = 'plain words'
    assert loaded.encode([text])[0].tolist() == tokenizer.encode([text])[0].tolist()

  @ALL
  def test_our_own_can_be_used_again(self, tmp_path, name):
    tokenizer = made(name)
    (tmp_path / 'tokenizer.json').write_text(tokenizer.to_json(), encoding='utf-8')
    declared = spec.parse('data.tokenizer', f'json:{tmp_path}/tokenizer.json')
    assert declared.vocab_size == tokenizer.vocab_size
    again = tokenizers.from_file(declared, [])
    assert again.encode(TEXTS)[0].tolist() == tokenizer.encode(TEXTS)[0].tolist()

  def test_the_cache_goes_by_content(self, make, tmp_path):
    (tmp_path / 'a.txt').write_text('Plain words. ' * 300)
    config = {'data.source': f'text:{tmp_path}/a.txt', 'data.tokenizer': f'json:{tmp_path}/t.json'}
    gpt2().save(str(tmp_path / 't.json'))
    first = data.load(make(**config))
    assert first.train[0].max() < first.tokenizer.vocab_size == first.info['vocab_size']
    gpt2(last='').save(str(tmp_path / 't.json'))
    assert data.load(make(**config)).fingerprint != first.fingerprint
    gpt2().save(str(tmp_path / 't.json'))
    assert data.load(make(**config)).fingerprint == first.fingerprint

  def test_what_is_lost_is_counted(self, make, tmp_path):
    (tmp_path / 'a.txt').write_text('Plain words 한. ' * 300)
    bert().save(str(tmp_path / 't.json'))
    source = {'data.source': f'text:{tmp_path}/a.txt', 'data.tokenizer': f'json:{tmp_path}/t.json'}
    info = data.load(make(**source)).info
    assert info['train_unknown_tokens'] > 200
    assert info['held_out_lossy_documents'] == info['held_out_documents'] > 0
    exact = data.load(make(**source | {'data.tokenizer': 'bpe'})).info
    assert exact['held_out_lossy_documents'] == exact['train_unknown_tokens'] == 0

  @pytest.mark.parametrize(
    'text', ['', '[]', '{"a": 1}', '{"model": 3}', '{"model": {"vocab": 1}}']
  )
  def test_another_file(self, make, tmp_path, text):
    (tmp_path / 't.json').write_text(text)
    with pytest.raises(UserError) as e:
      make(**{'data.tokenizer': f'json:{tmp_path}/t.json'})
    assert str(e.value) == (
      f'--data.tokenizer=json:{tmp_path}/t.json: is not a tokenizer.json of Hugging Face '
      'or of a run'
    )

  def test_no_file(self, make, tmp_path):
    with pytest.raises(UserError) as e:
      make(**{'data.tokenizer': f'json:{tmp_path}/t.json'})
    assert str(e.value) == (
      f'--data.tokenizer=json:{tmp_path}/t.json: cannot be read (No such file or directory); '
      'name a tokenizer.json'
    )

  def test_a_file_the_library_refuses(self, tmp_path):
    (tmp_path / 't.json').write_text('{"model": {"type": "new", "vocab": {"a": 0}}}')
    with pytest.raises(UserError, match=r't.json: tokenizers cannot read it \('):
      tokenizers.load(tmp_path / 't.json')


@ALL
def test_pieces_stand_for_ids_one_by_one(name):
  tokenizer = made(name)
  for text in TEXTS:
    assert len(tokenizer.pieces(text)) == len(tokenizer.encode([text])[0])
  assert tokenizers.Byte().pieces('aé') == ['a', 'é 1/2', 'é 2/2']
