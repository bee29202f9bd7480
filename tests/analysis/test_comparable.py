"""A difference is only made between cells that are equal in all but what is compared."""

import csv
import io
import json

import pytest
from rich.console import Console

from transformer.analysis import latex, page, plots, report
from transformer.analysis.load import load
from transformer.analysis.verdict import sentences

from .conftest import write_folder

PAIR = {'relu': (0.0, 0.0), 'gelu': (-0.04, 0.004)}


@pytest.fixture
def folder(tmp_path):
  """folder('a', variants, **settings): runs at those settings; other options by name."""

  def write(at: str, variants: dict = PAIR, options: dict | None = None, **settings):
    settings = {name.replace('__', '.'): value for name, value in settings.items()}
    return write_folder(tmp_path / at, variants, settings=settings, **(options or {}))

  return write


def _change(path, **more):
  path.write_text(json.dumps(json.loads(path.read_text()) | more))


def _by_name(found):
  return {v.name: v for v in found.variants}


def test_groups_that_mix_other_budgets_get_no_verdict_anywhere(folder):
  short = folder('short', {'relu': (1.0, 0.0), 'gelu': (1.01, 0.004)}, train__steps=20)
  long = folder('long', {'relu': (0.0, 0.0), 'swiglu': (-0.01, 0.003)}, train__steps=60)
  found = load([short, long], 'ffn.activation')
  why = 'not comparable: train.steps differs'
  for name in ('gelu', 'swiglu'):
    d = _by_name(found)[name].difference
    assert (d.verdict, d.p, d.p_holm, d.sample.n) == (why, None, None, 0)
  assert found.leaders == ()
  said = sentences(found)
  assert said[0].endswith(f'no verdict, {why}.')
  assert said[1] == (
    '`gelu` and `swiglu` are not compared with `relu`: train.steps differs between their cells.'
  )
  out = Console(width=80, file=io.StringIO(), color_system=None)
  report.console(found, out)
  pictures = plots.draw(found)
  assert 'differences' not in [p.name for p in pictures]
  for text in (out.file.getvalue(), page.html(found, pictures), latex.tex(found)):
    assert why in text and 'beat' not in text and 'worse than relu' not in text
  rows = {r['variant']: r for r in csv.DictReader(io.StringIO(report.summary(found)))}
  assert rows['gelu']['verdict'] == why
  assert rows['gelu']['difference_mean'] == rows['gelu']['p_holm'] == ''


def test_groups_of_the_same_mix_are_compared(folder):
  paths = [folder(str(steps), train__steps=steps) for steps in (20, 60)]
  found = load(paths, 'ffn.activation')
  assert found.mixed == ('train.steps',)
  assert _by_name(found)['gelu'].difference.verdict == 'better'
  assert _by_name(found)['gelu'].difference.sample.mean == pytest.approx(-0.04)
  both = load(paths, 'ffn.activation,train.steps')  # and each for itself
  assert {v.difference.obstacle for v in both.variants if v.difference} == {''}


def test_the_same_values_in_other_combinations_are_no_same_mix(folder):
  one, other = {'relu': (0.0, 0.0)}, {'gelu': (0.0, 0.0)}
  paths = [
    folder('a', one, train__steps=20, data__batch_size=8),
    folder('b', one, train__steps=60, data__batch_size=16),
    folder('c', other, train__steps=20, data__batch_size=16),
    folder('d', other, train__steps=60, data__batch_size=8),
  ]
  d = _by_name(load(paths, 'ffn.activation'))['gelu'].difference
  assert d.obstacle == 'data.batch_size and train.steps differ'


def test_what_a_budget_moves_is_no_obstacle(folder):
  gated = {'relu': (0.0, 0.0), 'swiglu': (-0.04, 0.004)}  # of other widths
  a = folder('a', gated, model__d_model=96)
  b = folder('b', gated, {'budget': 500_000}, model__d_model=128)
  found = load([a, b], 'ffn.activation,model.d_model')
  assert found.match == 'none'
  alike = _by_name(found)['swiglu, 96'].difference
  assert (alike.obstacle, alike.verdict) == ('', 'better')
  c = folder('c', gated, {'budget': 900_000}, ffn__d_ff=768)  # asked for at another width
  found = load([write_folder(a.parent / 'd', {'relu': (0, 0)}), c], 'ffn.activation')
  assert _by_name(found)['swiglu'].difference.obstacle == 'ffn.d_ff differs'


def test_other_data_are_an_obstacle(folder):
  a = folder('a')
  for done in a.glob('cells/gelu-*/done.json'):
    _change(done, data='feedbeef99')
  found = load(a)
  assert _by_name(found)['gelu'].difference.verdict == 'not comparable: the data differ'
  assert '`gelu` is not compared with `relu`: the data differ between their cells.' in (
    sentences(found)
  )
  b = folder('b')
  for done in b.glob('cells/*-seed1-*/done.json'):  # of all variants alike: pairs stay pairs
    _change(done, data='feedbeef99')
  assert _by_name(load(b))['gelu'].difference.verdict == 'better'


def test_unlike_tokenizers_of_one_text_are_none_but_another_text_is(folder):
  a, b = (folder(name, data__tokenizer=name) for name in ('byte', 'bpe'))
  by = 'data.tokenizer,ffn.activation'
  assert {v.difference.obstacle for v in load([a, b], by).variants if v.difference} == {''}
  for path in b.glob('cells/*/provenance.json'):
    _change(path, data=json.loads(path.read_text())['data'] | {'held_out_bytes': 500_000})
  found = load([a, b], by)
  told = {v.name: v.difference.obstacle for v in found.variants if v.difference}
  base = found.baseline.partition(',')[0]
  assert all((why != '') == (not name.startswith(f'{base},')) for name, why in told.items())
  assert set(told.values()) == {'', 'the held-out text differs'}


def test_versions_of_the_code_are_told_beside_the_verdict(folder):
  a = folder('a')
  assert 'code' not in ' '.join(sentences(load(a)))
  (done,) = a.glob('cells/gelu-seed0-*/done.json')
  _change(done, code='feedbeef99')
  assert sentences(load(a))[1] == (
    '`gelu` mixes cells of different versions of the code: a difference may be due to that.'
  )
  for done in a.glob('cells/gelu-*/done.json'):
    _change(done, code='feedbeef99')
  assert sentences(load(a))[1].startswith('Variants come from different versions of the code')
  for path in a.glob('cells/gelu-*/provenance.json'):  # a file of the user's: its digest is other
    _change(path, plugins={'lab.py': '1'})
  assert 'code' not in ' '.join(sentences(load(a)))


def test_what_follows_from_a_width_is_no_obstacle(tmp_path):
  widths = {'1': (0.04, 0.005), '4': (0.0, 0.0)}
  path = write_folder(
    tmp_path / 'w', widths, baseline='4', name='ffn_width', variable='ffn.ratio', absorb='d_model'
  )
  for config in path.glob('cells/1-seed*/config.json'):  # its rate follows d_model
    told = json.loads(config.read_text())
    _change(config, model=told['model'] | {'d_model': 126}, optim={'learning_rate': 0.006})
  assert _by_name(load(path, 'ffn.ratio'))['1'].difference.verdict == 'worse'
