"""--data.source=mix: parts in their shares, each with its own rows and held-out documents."""

from __future__ import annotations

import collections
import json

import numpy as np
import pytest

from transformer import data, spec
from transformer.config import Config, resolve
from transformer.data import batches
from transformer.errors import UserError


def write(tmp_path, name, count, words):
  """A part whose every document is `words` and numbers."""
  lines = (json.dumps({'text': f'{words} {k} ' * 12}) for k in range(count))
  (tmp_path / f'{name}.jsonl').write_text('\n'.join(lines))
  return f'jsonl:{tmp_path}/{name}.jsonl'


@pytest.fixture
def parts(tmp_path):
  return write(tmp_path, 'upper', 300, 'UPPER'), write(tmp_path, 'lower', 40, 'lower')


def mixed(parts, *weights):
  return 'mix:' + ','.join(f'{p}={w}' for p, w in zip(parts, weights, strict=True))


def kinds(loaded, rows):
  """Which part rows come from."""
  found = (loaded.tokenizer.decode(row) for row in rows)
  return ''.join('u' if 'UPP' in t or 'PER' in t else 'l' for t in found)


def test_rows_come_in_the_shares_asked_for_at_every_moment(make, parts):
  loaded = data.load(make(**{'data.source': mixed(parts, 3, 1), 'data.seq_len': 16}))
  seen = ''.join(kinds(loaded, loaded.train_batch(i)) for i in range(100))
  assert seen.count('l') == 100 and seen.count('u') == 300
  assert all(seen[k : k + 20].count('l') in (4, 5, 6) for k in range(380))


def test_each_part_visits_each_of_its_rows_once_an_epoch(make, parts):
  loaded = data.load(make(**{'data.source': mixed(parts, 1, 1)}))
  [upper, lower] = loaded.rows.counts
  order = loaded.order(0, 4 * lower)
  own = order[order >= upper] - upper
  assert (
    sorted(own[:lower].tolist()) == sorted(own[lower : 2 * lower].tolist()) == list(range(lower))
  )
  assert (
    own[:lower].tolist() != own[lower : 2 * lower].tolist()
  )  # the next epoch's order is another
  theirs = order[order < upper]
  assert len(set(theirs.tolist())) == 2 * lower  # not yet through


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_processes_together_make_the_global_batch(make, parts, processes):
  loaded = data.load(make(**{'data.source': mixed(parts, 0.7, 0.3)}))
  for i in (0, 3, 2499, 2500, 10**6):  # the pattern of parts repeats after 10,000 rows
    split = [loaded.train_batch(i, p, processes) for p in range(processes)]
    assert np.array_equal(np.concatenate(split), loaded.train_batch(i))


def test_batch_is_a_function_of_seed_and_number(make, parts):
  source = {'data.source': mixed(parts, 0.7, 0.3)}
  one, again, other = (data.load(make(**source, seed=s)) for s in (0, 0, 1))
  forward = [one.train_batch(i).tolist() for i in range(9)]
  assert forward == [again.train_batch(i).tolist() for i in reversed(range(9))][::-1]
  assert forward != [other.train_batch(i).tolist() for i in range(9)]
  assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize('weights', [(0.5, 0.3, 0.2), (0.9998, 0.0001, 0.0001), (1.0,)])
def test_order_is_the_quota_written_down(weights):
  rows = [7000, 11000, 2000][: len(weights)]  # of few rows grain takes 2 ms to begin an epoch
  order = batches.mixed_order(rows, weights, seed=3)
  found = order(0, 20_000)
  assert np.array_equal(np.concatenate([order(0, 777), order(777, 20_000)]), found)
  part = np.searchsorted(np.cumsum(rows), found, 'right')
  counts = collections.Counter(part.tolist())
  assert [counts[k] for k in range(len(weights))] == [round(20_000 * w) for w in weights]


def test_held_out_covers_all_parts_as_each_would_be_split_alone(make, parts):
  alone = [data.load(make(**{'data.source': p})) for p in parts]
  both = data.load(make(**{'data.source': mixed(parts, 1, 1)}))
  [stream] = both.held_out
  first, second = (d.held_out[0] for d in alone)
  assert stream.tolist() == [*first, *second[1:]]  # one 0 between them
  assert both.held_out_bytes == sum(d.held_out_bytes for d in alone)
  assert [s.tolist() for s in both.train] == [d.train[0].tolist() for d in alone]


def test_one_tokenizer_is_trained_on_all_parts(make, parts):
  more = {'data.tokenizer': 'bpe(vocab_size=300)'}
  loaded = data.load(make(**{'data.source': mixed(parts, 1, 1)}, **more))
  assert [len(ids) for ids in loaded.tokenizer.encode([' UPPER', ' lower'])] == [1, 1]
  alone = data.load(make(**{'data.source': parts[0]}, **more))
  assert len(alone.tokenizer.encode([' lower'])[0]) > 1


def test_weights_change_no_cache(make, parts, monkeypatch):
  one = data.load(make(**{'data.source': mixed(parts, 1, 1)}))
  monkeypatch.setattr('transformer.data.packed._pack', lambda *a: pytest.fail('packed again'))
  other = data.load(make(**{'data.source': mixed(parts, 5, 1)}))
  assert one.fingerprint == other.fingerprint
  assert not np.array_equal(one.train_batch(0), other.train_batch(0))


def test_info_tells_parts_and_epochs(make, parts):
  config = make(**{'data.source': mixed(parts, 3, 1), 'train.steps': 50})
  loaded = data.load(config)
  upper, lower = loaded.info['parts']
  assert (upper['name'], lower['name']) == parts
  assert (upper['weight'], lower['weight']) == (0.75, 0.25)
  assert upper['epochs'] == pytest.approx(50 * 4 * 0.75 / loaded.rows.counts[0])
  for name in ('documents', 'train_tokens', 'train_bytes', 'held_out_bytes', 'groups'):
    assert loaded.info[name] == upper[name] + lower[name]
  assert loaded.info['source'] == 'mix' and upper['source'] == 'jsonl'


def test_a_list_is_cut_at_commas_outside_brackets_and_quotes():
  for text, parts in {
    'a, b(c=1, d=2) ,e': ['a', 'b(c=1, d=2)', 'e'],
    "tokens(glob='a,(b', eos=3)=1,x=2": ["tokens(glob='a,(b', eos=3)=1", 'x=2'],
    'a(b(c, d), [e, f]),g': ['a(b(c, d), [e, f])', 'g'],
    ', ,': [],
  }.items():
    assert spec.split(text) == parts


class TestMistakes:
  def error(self, make, source, **changes):
    with pytest.raises(UserError) as e:
      data.load(make(**{'data.source': source}, **changes))
    assert '\n' not in str(e.value)
    return str(e.value)

  @pytest.mark.parametrize(
    ('parts', 'message'),
    [
      ('stdlib=0', 'stdlib has weight 0; it should be above 0'),
      ('stdlib=-1', 'stdlib has weight -1; it should be above 0'),
      ('stdlib=inf', 'stdlib has weight inf; it should be above 0'),
      ('stdlib', "'stdlib' should be a source and its weight, as in stdlib=0.7"),
      ('stdlib=much', "'stdlib=much' should be a source and its weight, as in stdlib=0.7"),
      ('stdlib=1,mix:stdlib=1=1', 'mix:stdlib=1 cannot be part of a mixture; sources of text can'),
      ('stdlib=1,synthetic=1', 'synthetic cannot be part of a mixture; sources of text can'),
      ('stdlib=1,stdlib()=1', 'stdlib() is given twice'),
      (',', 'names no source; write mix:stdlib=0.7,jsonl:corpus/*.jsonl=0.3'),
    ],
  )
  def test_what_cannot_be_mixed(self, parts, message):
    with pytest.raises(UserError) as e:
      resolve(Config().replace(**{'data.source': f'mix:{parts}'}))
    assert str(e.value) == f'--data.source=mix:{parts}: {message}'

  def test_unknown_part(self):
    with pytest.raises(UserError) as e:
      resolve(Config().replace(**{'data.source': 'mix:stdlb=1'}))
    assert str(e.value) == "--data.source=stdlb: no variant 'stdlb'; did you mean stdlib?"

  def test_a_part_without_files(self, make, parts, tmp_path):
    message = self.error(make, mixed((parts[0], f'jsonl:{tmp_path}/no'), 1, 1))
    assert message == f'--data.source=jsonl:{tmp_path}/no: no file matches'

  def test_a_part_of_one_document(self, make, parts, tmp_path):
    lonely = write(tmp_path, 'lonely', 1, 'word')
    assert self.error(make, mixed((parts[0], lonely), 1, 1)) == (
      f'--data.source={lonely}: 1 document(s) with text; at least 2 are needed, '
      'one of them to hold out'
    )

  def test_a_part_without_a_row(self, make, parts, tmp_path):
    (tmp_path / 'short.jsonl').write_text('{"text": "ab"}\n{"text": "cd"}')
    source = mixed((parts[0], f'jsonl:{tmp_path}/short.jsonl'), 1, 1)
    assert self.error(make, source) == (
      f'--data.source={source}: jsonl:{tmp_path}/short.jsonl has 4 training tokens; '
      'one row of --data.seq_len=8 needs 9'
    )
