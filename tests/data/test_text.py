"""--data.source=text: files to streams, the split, the cache, and every mistake's line."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from transformer import data
from transformer.data import packed, sources
from transformer.errors import UserError


def write(folder, count, words=40):
  folder.mkdir(exist_ok=True)
  for k in range(count):
    (folder / f'{k:02}.txt').write_text(f'file {k}: ' + 'some words ' * words, encoding='utf-8')
  return f'text:{folder}/*.txt'


def documents(stream, tokenizer):
  """The texts of a stream `0 doc 0 doc … 0`."""
  assert stream[0] == 0 and stream[-1] == 0
  return [tokenizer.decode(ids) for ids in np.split(stream, np.flatnonzero(stream == 0))[1:-1]]


def test_streams_hold_every_file_whole_on_one_side(make, tmp_path):
  loaded = data.load(make(**{'data.source': write(tmp_path / 'corpus', 40)}))
  train = documents(loaded.train[0], loaded.tokenizer)
  held_out = documents(loaded.held_out[0], loaded.tokenizer)
  files = [p.read_text(encoding='utf-8') for p in sorted((tmp_path / 'corpus').iterdir())]
  assert sorted(train + held_out) == sorted(files)
  assert 1 <= len(held_out) <= 10
  assert loaded.held_out_bytes == sum(len(t.encode()) for t in held_out)
  assert loaded.info['documents'] == loaded.info['files'] == 40
  assert loaded.info['held_out_groups'] == len(held_out)
  assert (
    loaded.info['train_tokens']
    == len(loaded.train[0])
    == loaded.info['train_bytes'] + 1 + len(train)
  )


def test_split_is_by_name_and_independent_of_the_other_files_and_of_the_folder(make, tmp_path):
  def held_out(source):
    loaded = data.load(make(**{'data.source': source}))
    return {t.split(':')[0] for t in documents(loaded.held_out[0], loaded.tokenizer)}

  few = held_out(write(tmp_path / 'corpus', 30))
  many = held_out(write(tmp_path / 'moved', 50))
  assert few == {t for t in many if int(t.split()[1]) < 30}


def test_one_file_is_cut_in_contiguous_pieces(make, tmp_path):
  text = ''.join(f'{k} is a line of the play\r\n' for k in range(4000))
  (tmp_path / 'one.txt').write_bytes(text.encode())
  loaded = data.load(make(**{'data.source': f'text:{tmp_path}/one.txt'}))
  train, held_out = (documents(s, loaded.tokenizer) for s in (loaded.train[0], loaded.held_out[0]))
  assert all(piece in text and piece.endswith('\n') for piece in train + held_out)
  assert sum(map(len, train + held_out)) == len(text)
  assert 0.03 < loaded.held_out_bytes / len(text) < 0.2


@pytest.mark.parametrize('block', [1, 7, 2**20])
@pytest.mark.parametrize(
  'text', ['', 'a', 'no line at all ' * 9, 'x\r\n' * 50, 'aaa' * 9 + '\nb', 'naïve ½\n🙂' * 20]
)
def test_pieces_join_to_the_text(tmp_path, monkeypatch, text, block):
  """However much of the file is in memory at a time: characters and lines may lie across."""
  path = tmp_path / 'a.txt'
  path.write_bytes(text.encode())
  whole = list(sources._pieces(path, 10, ''))
  monkeypatch.setattr(sources, '_BLOCK', block)
  pieces = list(sources._pieces(path, 10, ''))
  assert pieces == whole
  assert ''.join(pieces) == text and all(len(p) <= 10 for p in pieces)
  assert list(sources._pieces(path, sys.maxsize, '')) == [text]


def test_texts_are_encoded_in_handfuls():
  """By number and by size, in order, none left out."""
  long = [('a', 'x' * packed._MOST_CHARACTERS), ('b', 'y'), ('c', 'z')]
  assert [[g for g, _ in some] for some in packed._handfuls(long)] == [['a'], ['b', 'c']]
  short = [(str(k), 'x') for k in range(600)]
  some = list(packed._handfuls(short))
  assert [len(part) for part in some] == [256, 256, 88]
  assert [one for part in some for one in part] == short
  assert list(packed._handfuls([])) == []


TAKES = """
import sys
from transformer.config import Config, resolve
from transformer.measure import pipeline
from transformer.measure.measures import Asked
told = {'data.source': 'synthetic', 'model.vocab_size': 32, 'data.tokenizer': 'bpe(vocab_size=300)'}
asked = Asked('data', resolve(Config().replace(**told)), 0.0, corpus_mb=float(sys.argv[1]))
print(pipeline.measure(asked).turn()['memory_mb'])
"""


@pytest.mark.exhaustive
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='/proc tells of memory')
def test_memory_hardly_grows_with_the_corpus():
  """From 5 to 20 MB of text, words of the tokenizer that are learnt among them."""
  command = [sys.executable, '-c', TAKES]
  small, large = (float(subprocess.check_output([*command, n])) for n in ('5', '20'))
  assert large < small + 30, (small, large)


@pytest.mark.parametrize('share', [0.001, 0.9])
def test_neither_side_is_ever_empty(make, tmp_path, share):
  for count in (20, 22):
    loaded = data.load(
      make(**{'data.source': write(tmp_path / f'c{count}', count), 'data.held_out': share})
    )
    assert 1 <= loaded.info['held_out_groups'] < count


def test_second_load_opens_what_the_first_wrote(make, tmp_path, monkeypatch):
  config = make(**{'data.source': write(tmp_path / 'corpus', 30)})
  first = data.load(config)
  monkeypatch.setattr(sources, '_pieces', lambda *a: pytest.fail('read again'))
  second = data.load(config)
  assert second.fingerprint == first.fingerprint
  assert np.array_equal(second.train_batch(3), first.train_batch(3))
  longer = data.load(config.replace(**{'data.seq_len': 16}))  # the same streams, other rows
  assert longer.fingerprint != first.fingerprint
  assert longer.train_batch(0).shape == (4, 17)


def test_fingerprint_follows_content_not_time(make, tmp_path):
  config = make(**{'data.source': write(tmp_path / 'corpus', 30)})
  first = data.load(config).fingerprint
  os.utime(tmp_path / 'corpus' / '03.txt', (1, 1))
  assert data.load(config).fingerprint == first
  (tmp_path / 'corpus' / '03.txt').write_text('edited ' * 60)
  assert data.load(config).fingerprint != first
  for change in ({'data.tokenizer': 'bpe'}, {'data.held_out': 0.5}):
    assert data.load(config.replace(**change)).fingerprint != first


def test_large_vocabulary_is_stored_in_32_bits(make, tmp_path):
  source = write(tmp_path / 'corpus', 30)
  wide = data.load(make(**{'data.source': source, 'data.tokenizer': 'bpe(vocab_size=70000)'}))
  assert wide.train[0].dtype == np.uint32
  assert data.load(make(**{'data.source': source})).train[0].dtype == np.uint16


def test_bpe_is_trained_on_the_training_side_alone(make, tmp_path):
  folder = tmp_path / 'corpus'
  write(folder, 40)
  config = make(**{'data.source': f'text:{folder}/*.txt', 'data.tokenizer': 'bpe(vocab_size=400)'})
  first = data.load(config)
  side = documents(first.held_out[0], first.tokenizer)[0].split(':')[0].split()[1]
  (folder / f'{int(side):02}.txt').write_text('zyzzyva ' * 500)
  second = data.load(config)
  assert second.tokenizer.to_json() == first.tokenizer.to_json()
  assert second.fingerprint != first.fingerprint


class TestMistakes:
  def load(self, make, source, **changes):
    with pytest.raises(UserError) as e:
      data.load(make(**{'data.source': source}, **changes))
    return str(e.value)

  def test_no_file(self, make, tmp_path):
    source = f'text:{tmp_path}/*.md'
    assert self.load(make, source) == f'--data.source={source}: no file matches'

  def test_empty_files(self, make, tmp_path):
    (tmp_path / 'a.txt').touch()
    source = f'text:{tmp_path}/*.txt'
    assert self.load(make, source) == f'--data.source={source}: the files hold no text'

  def test_not_utf8(self, make, tmp_path):
    source = write(tmp_path / 'corpus', 3)
    bad = tmp_path / 'corpus' / 'latin.txt'
    bad.write_bytes('naïve'.encode('latin-1'))
    assert self.load(make, source) == (
      f'--data.source={source}: {bad} is not UTF-8 at byte 2; convert it or leave it out'
    )
    assert not list((tmp_path / 'cache').rglob('*.partial'))

  @pytest.mark.parametrize('block', [1, 3, 2**20])
  @pytest.mark.parametrize('ending', ['ï'.encode('latin-1'), '½'.encode()[:1]])
  def test_where_it_is_not_utf8(self, tmp_path, monkeypatch, block, ending):
    monkeypatch.setattr(sources, '_BLOCK', block)
    path = tmp_path / 'a.txt'
    path.write_bytes('½½½ ab'.encode() + ending)
    with pytest.raises(UserError, match='is not UTF-8 at byte 9;'):
      list(sources._pieces(path, 4, ''))

  def test_a_word_cannot_be_split(self, make, tmp_path):
    (tmp_path / 'a.txt').write_text('word')
    source = f'text:{tmp_path}/*.txt'
    assert self.load(make, source) == (
      f'--data.source={source}: 1 document(s) with text; at least 2 are needed, '
      'one of them to hold out'
    )

  def test_less_than_one_batch(self, make, tmp_path):
    source = write(tmp_path / 'corpus', 25, words=1)
    message = self.load(make, source, **{'data.seq_len': 500})
    tokens = np.load(next((tmp_path / 'cache').rglob('train.npy'))).size
    assert 300 < tokens < 600
    assert message == (
      f'--data.source={source}: {tokens} training tokens; one batch of --data.batch_size=4 rows '
      'of --data.seq_len=500 needs 2,001'
    )

  def test_cache_that_cannot_be_written(self, make, tmp_path):
    source = write(tmp_path / 'corpus', 25)
    (tmp_path / 'file').touch()
    assert self.load(make, source, **{'data.cache': f'{tmp_path}/file'}) == (
      f'--data.cache: {tmp_path}/file/tokens cannot be written (Not a directory); '
      'name another folder, or set $ISOFFN_CACHE'
    )

  def test_damaged_cache(self, make, tmp_path):
    source = write(tmp_path / 'corpus', 25)
    data.load(make(**{'data.source': source}))
    file = next((tmp_path / 'cache').rglob('info.json'))
    file.write_text('')
    assert self.load(make, source) == (
      f'--data.cache: {file.parent} is damaged (Expecting value: line 1 column 1 (char 0)); '
      'delete that folder'
    )
