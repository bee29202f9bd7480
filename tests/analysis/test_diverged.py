"""What is said and advised of runs that failed, diverged or began from others."""

import csv
import io
import json

import pytest

from transformer.analysis import inside, next_step, plots, report, table
from transformer.analysis.load import load
from transformer.analysis.verdict import sentences

ALONE = dict(seeds=1, baseline='', name='train', variable='')
PAIR = {'relu': (0, 0), 'gelu': (-0.04, 0.004)}
AT_ONCE = '10 steps in a row without …, up to step 10: …, no good step before'


def _break(folder, cells: str, message: str):
  """Makes failed cells non-finite, with a row of what they skipped."""
  for path in folder.glob(f'cells/{cells}-*/failed.json'):
    path.write_text(json.dumps({'cause': 'non-finite', 'message': message}))
    rows = [{'step': s, 'train/skipped_steps': 4.0, 'train/spikes': 1.0} for s in (10, 20)]
    (path.parent / 'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))


def _losses(folder, values):
  (path,) = folder.glob('cells/*/metrics.jsonl')
  rows = [{'step': 10 * i, 'train/loss': v} for i, v in enumerate(values, 1)]
  path.write_text(''.join(json.dumps(r) + '\n' for r in rows))


def test_what_failed_cells_skipped_is_counted(run_folder):
  folder = run_folder(variants=PAIR, failed=('gelu-seed1',))
  before = [c.heading for c in table.columns(load(folder))]
  assert 'skipped steps' not in before and 'loss spikes' not in before
  _break(folder, 'gelu-seed1', 'norm 3')
  found = load(folder)
  shown = {c.heading: c.show(found.variants[1]) for c in table.columns(found)}
  assert (shown['skipped steps'], shown['loss spikes']) == ('8', '2')
  rows = {r['variant']: r for r in csv.DictReader(io.StringIO(report.summary(found)))}
  assert (rows['gelu']['skipped_steps'], rows['relu']['skipped_steps']) == ('8', '0')


def test_a_run_that_rose_is_told_to_lower_the_rate(run_folder):
  folder = run_folder(variants={'relu': (2.0, 0)}, **ALONE)  # 5.8, a unigram count has 5.49
  _losses(folder, [5.0 + 0.02 * i for i in range(40)])
  said = ' '.join(sentences(load(folder)))
  assert 'That is worse than a unigram count (5.490 nats per token): training diverged' in said
  assert 'train longer' not in said
  (step,) = next_step.suggest(load(folder))
  assert '--optim.learning_rate=0.004' in step.command
  _losses(folder, [6.6 - 0.02 * i for i in range(40)])  # still on its way down
  said = ' '.join(sentences(load(folder)))
  assert 'diverged' not in said and 'train longer' in said
  assert [s.why[:7] for s in next_step.suggest(load(folder))] == ['4 times']


def test_a_model_that_overflows_at_once_is_replayed_not_slowed_down(run_folder):
  folder = run_folder(variants=PAIR, seeds=2, failed=('gelu-seed0', 'gelu-seed1'))
  _break(folder, 'gelu', AT_ONCE)
  (step,) = next_step.suggest(load(folder))  # nothing is tied, and one alone has no order
  (cell,) = folder.glob('cells/gelu-seed0-*')
  assert step.command == f'python -m experiments.replay --cell={cell}'
  assert 'overflows at the weights it begins with' in step.why
  _break(folder, 'gelu', 'at the last good step 3.1')
  (step,) = next_step.suggest(load(folder))
  assert '--optim.learning_rate=0.004' in step.command


def test_seeds_are_advised_for_what_they_help(run_folder):
  clear = {'relu': (0, 0), 'gelu': (-0.3, 0.001)}
  (longer,) = next_step.suggest(load(run_folder(variants=clear)))
  assert longer.why.startswith('4 times')
  more, _ = next_step.suggest(load(run_folder(variants=clear, seeds=2)))
  assert more.why.startswith('8 paired seeds in place of 2, for a verdict')
  more, _ = next_step.suggest(load(run_folder(variants={'relu': (0, 0), 'gelu': (0.001, 0.01)})))
  assert 'to part what is tied' in more.why


def test_a_run_that_began_from_another_says_so(run_folder):
  settings = {'train.init_from': 'runs/base', 'train.init': 'finetune'}
  found = load(run_folder(variants={'relu': (0.5, 0)}, settings=settings, **ALONE))
  first, *rest = sentences(found)
  assert 'begun from the weights of `runs/base` (finetune)' in first
  assert 'train longer' not in ' '.join(rest) and not next_step.suggest(found)
  fresh = load(run_folder(variants={'relu': (0.5, 0)}, **ALONE))
  assert 'begun from' not in sentences(fresh)[0]
  assert 'train longer' in ' '.join(sentences(fresh)) and next_step.suggest(fresh)


def test_one_is_singular(run_folder):
  one = run_folder(variants=PAIR, seeds=2, settings={'model.num_layers': 1})
  said = ' '.join(sentences(load(one)))
  assert ', 1 layer, ' in said and 'the difference to `relu` is that of `gelu` (' in said


@pytest.fixture
def axes():
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure((3, 2))
  FigureCanvasAgg(figure)
  return figure.add_subplot()


def test_a_panel_holds_its_bands_and_few_labels(axes):
  axes.plot([0, 1], [0.1, 0.2])
  axes.fill_between([0, 1], [0.0, 0.0], [0.3, 0.6])
  inside._dress(axes, 'dead')
  assert axes.get_ylim()[1] > 0.6
  axes.clear()
  axes.plot([0, 1], [1.5, 90.0])
  axes.fill_between([0, 1], [1.0, 50.0], [2.0, 130.0])
  inside._dress(axes, 'kurtosis')
  axes.figure.canvas.draw()
  assert not any(t.get_text() for t in axes.get_yticklabels(minor=True))
  assert axes.get_ylim()[1] > 130


@pytest.mark.exhaustive
@pytest.mark.filterwarnings('error::UserWarning')
def test_pictures_have_room(run_folder):
  assert plots.draw(load(run_folder(spikes={'relu-seed1': (250,)}, inside=True)))
