"""What a source of one's own needs: a generator, or a Corpus."""

from __future__ import annotations

import pytest

from transformer import data, spec
from transformer.data import packed
from transformer.errors import UserError


@pytest.fixture
def register():
  """register(name, body) -> a source for the time of the test."""
  names = []

  def add(name, body):
    spec.declare('data.source', name)(type(name, (), {}))
    spec.bodies('data.source')[name] = body
    names.append(name)

  yield add
  for name in names:
    del spec._DECLARED['data.source'][name], spec.bodies('data.source')[name]


def notes(declared, config):
  for k in range(40):
    yield f'author {k % 8}', f'note {k}, ' + 'words ' * 20


def more_notes(declared, config):
  yield from notes(declared, config)
  yield 'one more', 'said later'


def test_a_generator_of_groups_and_texts_is_a_source(make, register):
  register('notes', notes)
  loaded = data.load(make(**{'data.source': 'notes'}))
  assert loaded.info['source'] == 'notes'
  assert (loaded.info['documents'], loaded.info['groups']) == (40, 8)
  text = ''.join(map(loaded.tokenizer.decode, (*loaded.train, *loaded.held_out)))
  assert all(f'note {k}, words' in text for k in range(40))


def test_it_can_be_part_of_a_mixture(make, register):
  register('notes', notes)
  register('others', lambda declared, config: data.Corpus('1', {'source': 'others'}, list))
  loaded = data.load(make(**{'data.source': 'mix:notes=1'}))
  assert loaded.info['documents'] == 40
  with pytest.raises(UserError) as e:
    data.load(make(**{'data.source': 'mix:notes=1,others=1'}))
  assert str(e.value).startswith('--data.source=others: 0 document(s) with text')


def test_it_is_packed_anew_when_its_text_or_its_state_changes(make, register, monkeypatch):
  register('notes', notes)
  state = ['1']

  def told(declared, config):
    return data.Corpus(state[0], {'source': 'told'}, lambda: notes(declared, config))

  register('told', told)
  for name in ('notes', 'told'):
    data.load(make(**{'data.source': name}))
  with monkeypatch.context() as patch:
    patch.setattr(packed, '_pack', lambda *a: pytest.fail('read again'))
    for name in ('notes', 'told'):
      data.load(make(**{'data.source': name}))
    spec.bodies('data.source')['notes'] = more_notes
    state[0] = '2'
    for name in ('notes', 'told'):
      with pytest.raises(pytest.fail.Exception):
        data.load(make(**{'data.source': name}))


def test_watch_is_told_of_every_stage(make, register):
  register('notes', notes)
  seen = []
  data.load(make(**{'data.source': 'notes'}), lambda *told: seen.append(told))
  assert seen[0] == ('reading', 0, 0)
  assert seen[-1] == ('cutting text into tokens', 40, 40)
  data.load(make(**{'data.source': 'notes'}), lambda *told: pytest.fail('made again'))


def test_no_text_where_there_are_ids(make):
  with pytest.raises(UserError) as e:
    data.corpora(make(**{'data.source': 'synthetic', 'model.vocab_size': 20}))
  assert str(e.value) == '--data.source=synthetic: holds no text; name a source that does'
