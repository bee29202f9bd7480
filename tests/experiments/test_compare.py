"""Any setting as the variable: what is planned, refused, and kept beside the cells."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.plan import Experiment
from tests.battery import tiny
from tests.experiments.planned import column, plan, refusal, spread
from tests.processes import TINY, flags, read, run
from transformer import count, spec
from transformer.config import Config


@pytest.mark.parametrize(
  'setting, values',
  [
    ('model.norm_placement', ['pre', 'post', 'sandwich']),
    ('model.norm', list(spec.variants('model.norm'))),
    ('model.parallel_branches', ['false', 'true']),
    ('optim.name', list(spec.variants('optim.name'))),
    ('optim.schedule', list(spec.variants('optim.schedule'))),
  ],
)
def test_all_values_of_a_setting_at_equal_parameters(setting: str, values: list[str]) -> None:
  found = plan('compare', f'--setting={setting}', '--vary=all')
  assert list(found) == values
  assert spread(found, 'parameters') < 0.005


def test_values_with_arguments_and_numbers() -> None:
  schedules = ['cosine', 'wsd(decay=0.3, final=0.1)']
  assert list(plan('compare', '--setting=optim.schedule', f'--vary={",".join(schedules)}')) == (
    schedules
  )
  rates = plan('compare', '--setting=optim.learning_rate', '--vary=0.004,8e-3', '--match=none')
  assert list(rates) == ['0.004', '8e-3']


def test_d_ff_gives_way_and_d_model_where_there_is_no_ffn() -> None:
  args = ('--setting=model.tied', '--vary=false,true')
  tied = plan('compare', *args)
  assert spread(tied, 'parameters') < 0.005
  assert len(set(column(tied, 'd_ff').values())) == 2
  bare = plan('compare', *args, '--ffn.ratio=0')
  assert spread(bare, 'parameters') < 0.005
  assert len(set(column(bare, 'd_model').values())) == 2


def test_the_entries_of_a_tokenizer_count_and_d_ff_gives_way() -> None:
  names = ['byte', 'bpe(vocab_size=512)', 'bpe', 'wordpiece(vocab_size=1024)']
  args = ('--setting=data.tokenizer', f'--vary={";".join(names)}')
  matched = plan('compare', *args, '--baseline=bpe')
  assert list(matched) == names
  assert spread(matched, 'parameters') < 0.005
  widths = list(column(matched, 'd_ff').values())
  assert widths[0] > widths[1] > widths[3] > widths[2]
  free = plan('compare', *args, '--match=none')
  assert len(set(column(free, 'd_ff').values())) == 1 and spread(free, 'parameters') > 0.5


NORM = ('--setting=model.norm', '--vary=rmsnorm,layernorm')
MISTAKES = {
  (): '--setting=: is empty; name what to compare, as in --setting=model.norm',
  ('--setting=model.nrom',): ('--setting=model.nrom: no such setting; did you mean model.norm?'),
  ('--setting=model.norm',): '--vary=: is empty; name values of model.norm, or all',
  ('--setting=train.log_every', '--vary=1,2'): (
    '--setting=train.log_every: changes no result, so there is nothing to compare'
  ),
  ('--setting=seed', '--vary=1,2'): (
    '--setting=seed: seeds are what each value is averaged over; use --seeds'
  ),
  ('--setting=ffn.ratio', '--vary=1,2'): (
    '--setting=ffn.ratio: is what --match solves for; use experiments.ffn_width'
  ),
  ('--setting=data.held_out', '--vary=0.1,0.2'): (
    '--setting=data.held_out: losses on other text do not compare; run experiments.train once for '
    'each, then experiments.report --by'
  ),
  ('--setting=data.tokenizer', '--vary=all', '--data.source=synthetic'): (
    '--setting=data.tokenizer: --data.source=synthetic holds no text to cut into tokens'
  ),
  ('--setting=model.norm', '--vary=rmsnorm,layernrom'): (
    "--model.norm=layernrom: no variant 'layernrom'; did you mean layernorm?"
  ),
  (*NORM, '--baseline=none'): '--baseline=none: is not among --vary=rmsnorm,layernorm',
  (*NORM, '--model.norm=none'): '--model.norm: is varied by this experiment; use --vary',
  ('--setting=model.qk_norm', '--vary=true,on'): (
    "--vary=true,on: 'on' should be true or false, as model.qk_norm is"
  ),
  ('--setting=model.dropout', '--vary=0.1,1.5'): (
    '--model.dropout: 1.5 is above the most allowed, 0.95'
  ),
  ('--setting=model.num_kv_heads', '--vary=0,3'): (
    '--vary=0,3: 0 and 3 are the same; leave one out'
  ),
  ('--setting=model.d_model', '--vary=all'): (
    '--vary=all: model.d_model has no list of values; name some'
  ),
}


@pytest.mark.parametrize('wrong', MISTAKES)
def test_a_mistake_is_one_line(wrong: tuple[str, ...]) -> None:
  assert refusal('compare', *wrong) == MISTAKES[wrong]


@pytest.mark.exhaustive
def test_cells_of_other_batches_share_no_reference_and_each_has_its_own_data(
  tmp_path: Path,
) -> None:
  workdir = tmp_path / 'run'
  settings = {k: v for k, v in TINY.items() if k != 'data.batch_size'} | {'train.steps': 4}
  args = [f'--workdir={workdir}', '--setting=data.batch_size', '--seeds=0', *flags(settings)]
  ended = run('experiments.compare', *args, '--vary=4')
  assert ended.returncode == 0, ended.stderr
  assert (workdir / 'references.json').exists()
  ended = run('experiments.compare', *args, '--vary=4,8')  # a value more, in the same folder
  assert ended.returncode == 0, ended.stderr
  assert not (workdir / 'references.json').exists()
  record = read(workdir / 'experiment.json')
  assert (record['variable'], record['baseline'], len(record['cells'])) == (
    'data.batch_size',
    '4',
    2,
  )
  assert len(list(workdir.glob('cells/*/done.json'))) == 2
  # Once more: neither is taken for a cell of other data.
  assert run('experiments.compare', *args, '--vary=4,8').returncode == 0
  other = [a.replace('data.batch_size', 'model.norm') for a in args[:2]]
  ended = run('experiments.compare', *other, '--vary=rmsnorm', *flags(settings))
  assert ended.stderr == (
    f'error: --workdir={workdir}: holds runs of another configuration (what varies is '
    'data.batch_size there, model.norm asked); choose another folder\n'
  )


def test_the_folder_is_named_after_the_setting() -> None:
  ended = run('experiments.compare', '--dry_run', *NORM)
  assert 'in runs/model.norm; nothing was run' in ended.stdout


def test_active_parameters_are_planned_and_recorded_where_there_are_experts() -> None:
  found = plan('compare', '--setting=moe.experts', '--vary=0,8', '--baseline=8', '--match=active')
  assert spread(found, 'active') < 0.005 and spread(found, 'parameters') > 0.5
  assert 'active' not in plan('compare', *NORM)['layernorm']
  from experiments import lab
  from launch.cells import Cell

  config = tiny(**{'moe.experts': 4, 'moe.router': 'expert_choice', 'moe.allow_noncausal': True})
  one = Experiment('x', '', Config(), config, [Cell('a-seed0', 'a', config)])
  (entry,) = lab._record(one)['cells']
  assert entry['looks_ahead'] and entry['active_params'] == count.active_params(config)
  assert entry['active_params'] < entry['params']
