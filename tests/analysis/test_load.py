"""Several folders as one, and cells regrouped by the settings they ran with."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest

from tests.processes import ROOT
from transformer.analysis import grouping, report
from transformer.analysis.load import load
from transformer.analysis.verdict import sentences
from transformer.errors import UserError

from .conftest import write_folder

TWO = {'relu': (0.0, 0.0), 'gelu': (-0.04, 0.004)}
BY = 'ffn.activation,optim.learning_rate'
RATES = {'a': 0.004, 'b': 0.008}


@pytest.fixture
def folder(tmp_path):
  """folder('a', …): a folder of relu and gelu, at a rate where one is given."""

  def write(at: str, rate: float = 0.008, **options):
    options = {'variants': TWO, 'settings': {'optim.learning_rate': rate}} | options
    return write_folder(tmp_path / at, **options)

  return write


def test_groups_are_tuples_of_values_over_folders(folder):
  paths = [folder(name, rate, shift=10 * (rate - 0.008)) for name, rate in RATES.items()]
  found = load(paths, BY)
  assert [v.name for v in found.variants] == [
    'relu, 0.004', 'gelu, 0.004', 'relu, 0.008', 'gelu, 0.008',
  ]  # fmt: skip
  assert [v.values for v in found.variants][-1] == ('gelu', '0.008')
  assert [len(v.losses) for v in found.variants] == [4] * 4
  assert found.baseline == 'relu, 0.004'  # the first folder's own configuration
  assert found.variants[3].difference.sample.mean == pytest.approx(-0.04 + 0.04)
  assert found.mixed == found.besides == () and not found.notes
  assert found.out == paths[0].parent / 'merged' and found.command == ''
  assert found.label('gelu, 0.008') == 'gelu 0.008'


@pytest.mark.parametrize('asked', ['gelu, 0.008', 'gelu,8e-3', ' gelu ,0.0080'])
def test_the_baseline_may_be_typed_in_any_way(folder, asked):
  found = load([folder(name, rate) for name, rate in RATES.items()], BY, asked)
  assert found.baseline == 'gelu, 0.008'
  assert found.variants[3].difference is None


def test_an_argument_of_a_variant_groups_and_one_without_it_shows_a_dash(folder):
  a = folder('a', settings={'optim.schedule': 'cosine'})
  b = folder('b', settings={'optim.schedule': 'cosine(warmup=0.2)'})
  found = load([a, b], 'optim.schedule.warmup,ffn.activation')
  assert found.by == ('optim.schedule.warmup', 'ffn.activation')
  assert {v.values[0] for v in found.variants} == {'0.1', '0.2'}
  c = folder('c', settings={'model.positions': 'rotary(base=500.0)'})
  d = folder('d', settings={'model.positions': 'learned'})
  found = load([c, d], 'model.positions.base,ffn.activation')
  assert [v.values[0] for v in found.variants] == ['500', '500', '-', '-']
  assert found.label('-, relu') == 'base - relu'


def test_a_dense_model_is_in_no_group_of_a_router(folder):
  a = folder('a', settings={'moe.experts': 4, 'moe.router': 'topk(k=2)'})
  b, by = folder('b', settings={}), 'moe.experts,moe.router,moe.router.k,ffn.activation'
  found = load([a, b], by)
  assert [v.values[:3] for v in found.variants] == [('4', 'topk(k=2)', '2')] * 2 + [
    ('0', '-', '-')
  ] * 2


def test_values_that_differ_past_six_digits_are_two_groups(folder):
  rates = {'a': 0.008, 'b': 0.0080000004, 'c': 0.1 + 0.2 - 0.292}
  assert len({f'{rate:.6g}' for rate in rates.values()}) == 1 < len(set(rates.values()))
  paths = [folder(name, rate, variants={'relu': (0, 0)}) for name, rate in rates.items()]
  found = load(paths, 'optim.learning_rate', '0.0080000004')
  assert [v.name for v in found.variants] == [repr(rate) for rate in rates.values()]
  assert [len(v.cells) for v in found.variants] == [4] * 3
  assert found.baseline == '0.0080000004' and found.numeric
  assert load(paths, 'optim.learning_rate').baseline == '0.008'
  third = folder('d', 1 / 3, variants={'relu': (0, 0)})  # negative control: shown in six digits
  found = load([paths[0], third], 'optim.learning_rate', '0.33333300')
  assert [v.name for v in found.variants] == ['0.008', '0.333333']
  assert found.baseline == '0.333333'


def test_cells_without_a_config_differ_in_nothing(folder):
  path = folder('a', waiting=('gelu-seed0',))
  (cell,) = (c for c in load(path).cells if c.name == 'gelu-seed0')
  other = dataclasses.replace(cell, config={'ffn': {'activatoin': 'gelu'}})
  none = dataclasses.replace(cell, config={})
  changed = dataclasses.replace(cell, config=cell.config | {'train': {'steps': 7}})
  assert grouping.differing([cell, none, other], (), '') == ((), ())
  assert grouping.differing([cell, changed], (), '') == (('train.steps',), ())  # negative control


def test_one_folder_is_regrouped_by_a_number(folder):
  widths = {'1': (0.04, 0.005), '2': (0, 0), '4': (-0.02, 0.005)}
  options = dict(variants=widths, baseline='2', name='ffn_width', variable='ffn.ratio')
  path = folder('widths', settings={}, **options)
  found = load(path, 'ffn.d_ff')
  assert found.numeric and [v.name for v in found.ranked] == ['96', '192', '384']
  assert found.out == path and found.command.startswith('python -m experiments.ffn_width')
  assert found.besides == ()  # ffn.ratio says the same as ffn.d_ff


def test_a_group_of_unlike_cells_is_told_and_counts_their_mean_once_a_seed(folder):
  paths = [folder(name, rate, waiting=('gelu-seed3',)) for name, rate in RATES.items()]
  found = load(paths, 'optim.learning_rate')
  first = found.variants[0]
  assert found.mixed == ('ffn.activation',)
  assert found.notes == (
    'within a group, cells also differ in `ffn.activation`; groups compare only where each holds '
    'the same mix: name it in --by to keep them apart',
  )
  assert list(first.losses) == [0, 1, 2]  # seed 3 has relu only
  relu, gelu = (c.result['eval/loss'] for c in first.cells if c.seed == 0)
  assert first.losses[0] == pytest.approx((relu + gelu) / 2)
  assert first.loss.n == first.sample('tokens_per_s').n == 3
  assert first.asked('params') == 319_968 and first.asked('seed') is None


def test_groups_that_differ_in_more_than_asked_are_told(folder):
  a = folder('a', settings={'train.steps': 400}, variants={'relu': (0, 0)})
  b = folder('b', settings={'train.steps': 1600}, variants={'gelu': (0, 0)})
  found = load([a, b], 'ffn.activation')
  assert (found.mixed, found.besides) == ((), ('train.steps',))
  said = ' '.join(sentences(found))
  assert '`gelu` is not compared with `relu`: train.steps differs between their cells.' in said
  assert '0.41 M to 1.64 M tokens' in said


def test_folders_of_one_variable_merge_without_by(folder):
  a = folder('a', seeds=2)
  b = folder('b', seeds=range(2, 5))
  found = load([a, b])
  assert [v.name for v in found.variants] == ['relu', 'gelu']
  assert [v.seeds for v in found.variants] == [(0, 1, 2, 3, 4)] * 2
  assert found.baseline == 'relu' and found.variants[1].difference.sample.n == 5


def test_uneven_seeds_pair_where_both_have_them(folder):
  a = folder('a', variants={'relu': (0, 0)}, seeds=range(1, 4))
  b = folder('b', variants={'gelu': (-0.04, 0.004)}, seeds=6)
  found = load([a, b], baseline='relu')
  assert found.variants[1].difference.seeds == (1, 2, 3)


def test_a_cell_in_two_folders_counts_once_the_finished_one(folder, tmp_path):
  a = folder('a', waiting=('gelu-seed0',))
  b = folder('b')
  found = load([a, b, a])
  assert [len(v.cells) for v in found.variants] == [4, 4]
  assert found.variants[1].cells[0].folder.is_relative_to(b)
  assert found.variants[1].cells[1].folder.is_relative_to(a)
  assert found.notes == ('there more than once, counted once: `relu-seed0` and 7 more',)
  (done,) = b.glob('cells/relu-seed1-*/done.json')
  other = json.loads(done.read_text())
  done.write_text(json.dumps(other | {'eval/loss': other['eval/loss'] + 0.01}))
  assert load([a, b]).notes[0].endswith('7 more, though losses differ by up to 0.0100 nats')


def test_cells_without_a_config_are_left_out_and_named(folder):
  path = folder('a', waiting=('gelu-seed0',))
  (config,) = path.glob('cells/gelu-seed0-*/config.json')
  config.unlink()
  found = load(path, 'ffn.activation')
  assert len(found.cells) == 7
  assert found.notes == ('left out, as no config.json tells their settings yet: `gelu-seed0`',)
  (config,) = path.glob('cells/gelu-seed1-*/config.json')
  config.write_text(json.dumps({'ffn': {'activatoin': 'gelu'}}))
  assert load(path, 'ffn.activation').notes[0] == (
    f"`gelu-seed1` left out: {config}: no setting 'ffn.activatoin'; did you mean ffn.activation?"
  )


def test_variants_of_a_users_own_file_group_by_their_arguments(folder, tmp_path):
  lab = tmp_path / 'lab_of_reports.py'
  lab.write_text(
    'from transformer.plugin import activation\n\n\n@activation\n'
    'def leaky_report(x, slope: float = 0.1):\n  return x\n'
  )
  variants = {f'leaky_report(slope={s})': (s, 0.0) for s in (0.2, 0.3)} | {'leaky_report': (0, 0)}
  settings = {'plugin': str(lab)}
  path = folder('a', variants=variants, baseline='leaky_report', settings=settings)
  code = (  # in a process of its own: what it declares stays declared
    'import sys\nfrom transformer.analysis.load import load\n'
    "found = load(sys.argv[1], 'ffn.activation.slope')\n"
    'print([v.name for v in found.ranked], found.notes, found.mixed)'
  )
  command = [sys.executable, '-c', code, str(path)]
  ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert (ended.stdout, ended.stderr) == ("['0.1', '0.2', '0.3'] () ()\n", '')
  settings = {'plugin': f'{lab}x'}
  gone = folder('b', variants=variants, baseline='leaky_report', settings=settings)
  assert load(gone, 'ffn.activation').notes == (
    f'--plugin={lab}x: cannot be read (No such file or directory)',
  )


@pytest.mark.parametrize(
  ('by', 'baseline', 'message'),
  [
    ('ffn.activatoin', '', "--by=ffn.activatoin: no setting 'ffn.activatoin'; did you mean"),
    ('learning_rate', '', "no setting 'learning_rate'; did you mean optim.learning_rate?"),
    ('optim.name.b3', '', "no setting 'optim.name.b3'; did you mean optim.name.b"),
    (' , ', '', '--by= , : names no setting; try --by=ffn.activation'),
    ('ffn.activation,seed', '', '--by=ffn.activation,seed: seeds are what a group averages over'),
    ('ffn.activation', 'gleu', "--baseline=gleu: no such group; did you mean 'gelu'?"),
    ('', 'gleu', "--baseline=gleu: no such group; did you mean 'gelu'?"),
  ],
)
def test_what_cannot_be_grouped_is_a_user_error(folder, by, baseline, message):
  with pytest.raises(UserError) as error:
    load(folder('a'), by, baseline)
  assert message in str(error.value) and '\n' not in str(error.value)


def test_folders_that_do_not_go_together_ask_for_by(folder, tmp_path):
  a = folder('a')
  b = folder('b', variants={'2': (0, 0)}, variable='ffn.ratio', name='ffn_width', baseline='2')
  with pytest.raises(UserError) as error:
    load([a, b])
  assert str(error.value) == (
    f'--workdir: {a} varies ffn.activation and {b} varies ffn.ratio; say by --by what to compare, '
    'as in --by=ffn.activation,ffn.ratio'
  )
  c = folder('c', 0.004)
  with pytest.raises(UserError) as error:
    load([a, c])
  assert str(error.value) == (
    f'--workdir: {a} and {c} both hold relu with seed 0, but optim.learning_rate differs; compare '
    'by it, as in --by=optim.learning_rate'
  )
  with pytest.raises(UserError, match='--workdir=: is empty'):
    load([])
  with pytest.raises(UserError, match=r'no cell in .*a has a config.json that tells it'):
    shutil.rmtree(a / 'cells')
    load(a, 'ffn.activation')


def test_other_budgets_and_other_ngrams_are_not_called_equal(folder):
  a = folder('a', budget=319_968)
  b = folder('b', 0.004, budget=500_000)
  references = json.loads((b / 'references.json').read_text())
  (b / 'references.json').write_text(json.dumps(references | {'bigram': 3.5}))
  found = load([a, b], BY)
  assert found.match == 'none' and found.references == {}
  assert found.notes == ('the folders have other n-gram losses, so none are shown',)


@pytest.mark.exhaustive
def test_a_report_of_another_kind_leaves_no_picture_of_the_one_before(folder):
  a, b = (folder(name, rate) for name, rate in RATES.items())
  out = report.write([a, b], BY, out=a.parent / 'both').out
  assert {p.name for p in (out / 'plots').iterdir()} == {
    'variable.png', 'loss.png', 'differences.png',
  }  # fmt: skip
  report.write(b, out=out)
  assert {p.name for p in (out / 'plots').iterdir()} == {'loss.png', 'differences.png'}
  assert not (b / 'report.html').exists()
