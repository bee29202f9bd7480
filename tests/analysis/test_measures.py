"""Nats per token, or bits per byte where tokenizers differ: all of a report in one of them."""

import csv
import io
import json
import math

import pytest
from rich.console import Console

from transformer.analysis import curves, latex, method, page, plots, report, table, verdict
from transformer.analysis.load import load
from transformer.analysis.measures import BITS, NATS
from transformer.errors import UserError

from .conftest import BYTES, TOKENIZERS, write_folder

COMPARED = dict(variants=TOKENIZERS, baseline='byte', variable='data.tokenizer', references=False)
ONE = {'relu': (0.0, 0.0), 'gelu': (-0.04, 0.004)}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return write_folder(tmp_path_factory.mktemp('runs') / 'tokenizers', **COMPARED)


@pytest.fixture
def both(tmp_path):
  """both(**of_the_second): folders of relu and gelu, in bytes and in pieces."""

  def write(second: str = 'bpe', **options):
    return [
      write_folder(tmp_path / 'a', ONE, settings={'data.tokenizer': 'byte'}),
      write_folder(tmp_path / 'b', ONE, settings={'data.tokenizer': second}, **options),
    ]

  return write


def _change(path, **more):
  path.write_text(json.dumps(json.loads(path.read_text()) | more))


def test_unlike_tokenizers_are_judged_in_bits_per_byte(folder):
  found = load(folder)
  assert found.measure is BITS and found.notes == ()
  by_name = {v.name: v for v in found.variants}
  byte, bpe = by_name['byte'], by_name['bpe']
  assert byte.loss.mean == byte.sample('eval/bits_per_byte').mean
  # nats per token would say the opposite: a token of bpe is 3.3 bytes
  assert bpe.difference.sample.mean == pytest.approx(-0.1 / math.log(2) / 2.6)
  assert bpe.difference.verdict == 'better'
  assert bpe.sample('eval/loss').mean > 3 * byte.sample('eval/loss').mean
  assert [v.name for v in found.ranked] == ['bpe', 'bpe(vocab_size=512)', 'byte']


def test_alike_tokenizers_are_judged_in_nats_per_token(run_folder, both):
  assert load(run_folder()).measure is NATS
  found = load(both('byte'), 'ffn.activation')
  assert found.measure is NATS and found.variants[1].difference.verdict == 'better'
  assert all('bits' not in s for s in verdict.sentences(found))
  assert 'bits/byte' in [c.heading for c in table.columns(found)]


def test_the_page_is_in_bits_and_says_why(folder):
  found = load(folder)
  first, why, *rest = verdict.sentences(found)
  assert 'in held-out bits per byte: ' in first and '`bpe` (−0.055 ± 0.004)' in first
  tokens = 400 * 64 * 16
  sizes = [f'{tokens * BYTES[name] / 1e6:.2f} MB' for name in ('byte', 'bpe')]
  assert why == (
    'Judged in bits per byte: nats per token of different tokenizers do not compare. Each trains '
    f'on {sizes[0]} to {sizes[1]} of text.'
  )
  pictures = plots.draw(found)
  out = Console(width=80, file=io.StringIO(), color_system=None)
  report.console(found, out)
  texts = [page.html(found, pictures), report.markdown(found, pictures), latex.tex(found)]
  for text in (*texts, out.file.getvalue()):
    assert 'bits/byte' in text and 'nats/token' not in text
  assert all('Judged in bits per byte' in text for text in texts[:2])
  told = {
    'Judged in bits per byte: nats per token of different tokenizers do not compare.',
    'Held-out loss at each evaluation, bits per byte; the training loss is in nats per token, '
    'which do not compare.',
  }
  left = texts[1]
  for sentence in told:
    assert sentence in left
    left = left.replace(sentence, '')
  assert 'nats per token' not in left
  assert '.015 bits per byte and 6 median' in left
  assert not any('nats' in s for s in rest)


def test_the_summary_names_the_unit_of_its_differences(folder, run_folder):
  rows = {r['variant']: r for r in csv.DictReader(io.StringIO(report.summary(load(folder))))}
  row, base = rows['bpe'], rows['byte']
  assert {r['judged_by'] for r in rows.values()} == {'bits per byte'}
  assert float(row['difference_mean']) == pytest.approx(
    float(row['bits_per_byte_mean']) - float(base['bits_per_byte_mean'])
  )
  assert float(row['loss_mean']) > float(base['loss_mean'])  # nats, whatever is judged by
  nats = csv.DictReader(io.StringIO(report.summary(load(run_folder()))))
  assert {r['judged_by'] for r in nats} == {'nats per token'}


def test_curves_are_of_evaluations_in_bits(folder, run_folder):
  curve = curves._curves(load(folder))[0]
  assert list(curve.steps) == [100, 200, 300, 400]
  assert [y for _, y in curve.points] == pytest.approx(list(curve.mean))  # not smoothed
  assert 1 < curve.mean[-1] < 3
  assert len(curves._curves(load(run_folder()))[0].steps) == 40


def test_a_variant_may_hold_several_tokenizers(both):
  found = load(both(), 'ffn.activation')
  assert found.measure is BITS and found.mixed == ('data.tokenizer',)
  assert found.references == {} and not any('n-gram' in note for note in found.notes)


def _learn(folder, tokenizer):
  for cell in folder.glob('cells/*'):
    (cell / 'tokenizer.json').write_text(json.dumps({'model': tokenizer}))


def test_one_setting_learned_on_other_texts_is_another_tokenizer(tmp_path):
  texts = {'a': 'text:a.txt', 'b': 'text:b.txt'}
  paths = [
    write_folder(tmp_path / at, ONE, settings={'data.tokenizer': 'bpe', 'data.source': source})
    for at, source in texts.items()
  ]
  by = 'data.source,ffn.activation'
  assert load(paths, by).measure is NATS  # negative control: nothing tells them apart
  for path in paths:
    _learn(path, 'of one text')
  assert load(paths, by).measure is NATS  # negative control: learned alike
  _learn(paths[1], 'of another')
  found = load(paths, by)
  assert found.measure is BITS and len(found.variants) == 4
  assert load(paths[0]).measure is load(paths[1]).measure is NATS  # seeds and variants share it


def test_cells_that_have_not_begun_are_cut_as_their_setting_says(tmp_path):
  path = write_folder(tmp_path / 'a', ONE, waiting=('gelu-seed3',))
  _learn(path, 'of the text')
  (waiting,) = path.glob('cells/gelu-seed3-*')
  (waiting / 'tokenizer.json').unlink()
  assert load(path).measure is NATS
  config = waiting / 'config.json'  # negative control
  was = json.loads(config.read_text())
  _change(config, data=was['data'] | {'tokenizer': 'byte'})
  assert load(path).measure is BITS


def test_only_unlike_text_is_noted_as_other_data(both):
  assert load(both(), 'data.tokenizer,ffn.activation').notes == ()
  a, b = both()
  for path in b.glob('cells/*/provenance.json'):
    data = json.loads(path.read_text())['data']
    _change(path, data=data | {'held_out_bytes': 500_000})
  found = load([a, b], 'data.tokenizer,ffn.activation')
  assert found.notes == (
    'the held-out text is not the same for all finished cells; compare with care',
  )
  assert method.protocol(found)[-1] == 'No cell trains on its own held-out text.'


def test_other_rows_of_the_same_tokenizer_are_noted(folder, tmp_path):
  path = write_folder(tmp_path / 'c', **COMPARED)
  assert method.protocol(load(path))[-1].startswith('The held-out text is the same for every cell')
  assert 'though not the same order of the data' in ' '.join(method.protocol(load(path)))
  (done,) = path.glob('cells/byte-seed1-*/done.json')
  _change(done, data='feedbeef99')
  (note,) = load(path).notes
  assert note.startswith('finished cells come from 2 versions of the data (3 by ')


def test_text_that_does_not_come_back_is_noted(tmp_path):
  path = write_folder(tmp_path / 'c', **COMPARED)
  for file in path.glob('cells/bpe-seed*/provenance.json'):
    data = json.loads(file.read_text())['data']
    _change(file, data=data | {'held_out_lossy_documents': 12})
  assert load(path).notes == (
    'held-out documents not told whole, which flatters bits per byte: 12 by `bpe`',
  )


def test_a_cell_without_text_is_refused_beside_other_tokenizers(both):
  a, b = both()
  (done,) = b.glob('cells/gelu-seed2-*/done.json')
  was = json.loads(done.read_text())
  del was['eval/bits_per_byte']
  done.write_text(json.dumps(was))
  assert load(b).measure is NATS  # alone it is judged as ever
  with pytest.raises(UserError) as error:
    load([a, b], 'data.tokenizer')
  assert str(error.value) == (
    f'{done.parent}: tells no bits per byte, as its data hold no text, and nats per token of '
    'different tokenizers do not compare; leave its experiment out'
  )


def test_an_outlier_is_far_in_its_own_unit(tmp_path):
  path = write_folder(tmp_path / 'c', **COMPARED)
  (done,) = path.glob('cells/bpe-seed2-*/done.json')
  was = json.loads(done.read_text())
  _change(done, **{'eval/bits_per_byte': was['eval/bits_per_byte'] + 0.1})
  (said,) = (s for s in verdict.sentences(load(path)) if 'of its siblings' in s)
  assert 'bits per byte above the median' in said
  _change(done, **{'eval/loss': 9.0, 'eval/bits_per_byte': was['eval/bits_per_byte']})
  assert not load(path).outliers


def test_one_seed_in_bits_says_no_more_than_it_knows(tmp_path):
  found = load(write_folder(tmp_path / 'c', seeds=2, **COMPARED))
  said = ' '.join(verdict.sentences(found))
  assert 'too few seeds for a verdict' in said and 'bits per byte.' in said
