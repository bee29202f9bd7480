"""What is said in words, whole sentences, and what the next experiment costs."""

import json
import re

import pytest

from transformer.analysis import formats, next_step, verdict
from transformer.analysis.load import load

WHERE = (
  'At d_model 96, 2 layers, context 64, 0.41 M tokens of stdlib text, equal parameters (319,968), '
  '{} paired seeds, fixed learning rate 0.008, in held-out nats per token: '
)


def test_the_verdict_says_where_what_and_how_sure(run_folder):
  first, *rest = verdict.sentences(load(run_folder()))
  assert first == WHERE.format(4) + (
    '`gelu` (−0.044 ± 0.007), `swiglu` (−0.037 ± 0.007), `relu2` (−0.034 ± 0.018) and `geglu` '
    '(−0.032 ± 0.011) beat `relu`; `identity` (+0.077 ± 0.015) is worse than `relu`; `silu` '
    '(−0.023 ± 0.040) ties with `relu`.'
  )
  assert rest == [
    'The lowest mean besides `relu` is that of `gelu`; these runs do not part `swiglu`, `relu2`, '
    '`geglu` and `silu` from it.',
    'To show a difference of the size seen, if it is the true one and the only one tested, would '
    'take about 12 paired seeds for `silu`.',
    'Every variant is better than a bigram count (3.940 nats per token).',
    'This holds for this shape, this budget and one learning rate for all, tuned for none; the '
    'order, even its sign, may change with any of them.',
  ]


def test_two_seeds_make_no_verdict(run_folder):
  said = ' '.join(verdict.sentences(load(run_folder(seeds=2))))
  assert said.startswith(WHERE.format(2) + 'too few seeds for a verdict. So far, without an')
  assert '±' not in said and 'beat' not in said and 'told apart' not in said


def test_one_run_has_no_error_bar(run_folder):
  found = load(run_folder(variants={'gelu': (0, 0)}, seeds=1, baseline='', name='train'))
  first, *rest = verdict.sentences(found)
  assert first.startswith('At d_model 96') and 'the held-out loss is 3.818 nats' in first
  assert rest[-1].startswith('One run has no error bar')


def test_without_a_baseline_the_best_is_named(run_folder):
  first, second, *_ = verdict.sentences(load(run_folder(baseline='')))
  assert 'the lowest mean held-out loss is' in first and first.endswith('by `gelu`.')
  assert second.startswith('The lowest mean is that of `gelu`; ')


def test_doubts_are_named(run_folder):
  folder = run_folder(failed=('silu-seed1',), unfinished=('gelu-seed3',), seeds=4)
  said = verdict.sentences(load(folder))
  assert 'Failed, and missing above: 1 of 28 cells.' in said
  assert 'Provisional: 1 of 28 cells are not finished.' in said


def test_an_outlier_is_named(run_folder):
  folder = run_folder(variants={'relu': (0, 0), 'gelu': (-0.04, 0.003), 'silu': (-0.02, 0.003)})
  (done,) = folder.glob('cells/silu-seed2-*/done.json')
  was = load(folder).variants[2].cells[2].result['eval/loss']
  done.write_text(done.read_text().replace(str(was), str(was - 0.2)))
  said = verdict.sentences(load(folder))
  named = [s for s in said if 'of its siblings' in s]
  assert len(named) == 1
  assert re.match(r'Seed 2 of `silu` lies 0\.\d{3} nats per token below the median', named[0])


def test_worse_than_a_bigram_is_said(run_folder):
  said = verdict.sentences(load(run_folder(variants={'relu': (0, 0), 'none': (0.5, 0.01)})))
  assert any(s.startswith('`none` is no better than a bigram count') for s in said)


def test_nothing_finished_is_said(run_folder):
  folder = run_folder(variants={'relu': (0, 0)}, seeds=2, waiting=('relu-seed0', 'relu-seed1'))
  found = verdict.answer(load(folder))
  assert found.found == 'No cell is finished yet, so there is no answer.'


def test_the_next_experiment_and_its_cost(run_folder):
  folder = run_folder()
  more, longer = next_step.suggest(load(folder))
  assert more.command == f'python -m experiments.activations --workdir={folder} --seeds=0..11'
  # 7 variants × 8 new seeds × 8.2 s over 2 workers = 230 s; 56 × 6 × 319,968 × 409,600 FLOPs
  assert more.cost == '56 cells, about 4 min with 2 workers at the speed seen here, 44.0 TFLOP'
  assert longer.command == (
    f'python -m experiments.activations --workdir={folder}-4x --seeds=0..3 --train.steps=1600'
  )
  # 28 cells × 4 × 8.2 s over 2 workers = 459 s
  assert longer.cost == '28 cells, about 8 min with 2 workers at the speed seen here, 88.1 TFLOP'


def test_open_cells_come_first(run_folder):
  folder = run_folder(failed=('silu-seed1',), waiting=('gelu-seed0',))
  first = next_step.suggest(load(folder))[0]
  assert first.why.startswith('Finish the 2 cells')
  assert first.command.endswith('--seeds=0..3')


def test_a_diverged_cell_asks_for_a_lower_rate_and_not_for_the_same_command(run_folder):
  folder = run_folder(failed=('silu-seed1',))
  (path,) = folder.glob('cells/silu-seed1-*/failed.json')
  path.write_text(json.dumps(json.loads(path.read_text()) | {'cause': 'non-finite'}))
  first, *rest = next_step.suggest(load(folder))
  assert first.command == (
    f'python -m experiments.activations --workdir={folder}-half-rate --seeds=0..3 '
    '--optim.learning_rate=0.004'
  )
  assert not any(step.why.startswith('Finish') for step in rest)


@pytest.mark.parametrize(
  ('command', 'expected'),
  [
    ('python x.py', 'python x.py --seeds=0..7'),
    ('python x.py --seeds=0..3 --seed=1', 'python x.py --seeds=0..7 --seed=1'),
    ('python x.py --seeds 0..3 -v', 'python x.py --seeds=0..7 -v'),
    ('python x.py -seeds=1 --a="b c" --seeds=2', "python x.py --seeds=0..7 '--a=b c'"),
  ],
)
def test_flags_are_replaced_or_added(command, expected):
  assert next_step.with_flags(command, {'seeds': '0..7'}) == expected


def test_numbers_as_text():
  assert formats.short(409_600) == '0.41 M'
  assert formats.short(12_345) == '12.3 k'
  assert formats.short(4.4e13, 'FLOP') == '44.0 TFLOP'
  assert formats.p_value(0.0131) == '.013' and formats.p_value(1e-5) == '< .001'
  assert formats.p_value(1.0) == '1.000' and formats.p_value(None) == '–'
  assert [formats.duration(s) for s in (0.2, 40, 230, 6000, 300_000)] == [
    '1 s', '40 s', '4 min', '1 h 40 min', '3.5 days',
  ]  # fmt: skip
  assert formats.listing(['a', 'b', 'c']) == 'a, b and c'
