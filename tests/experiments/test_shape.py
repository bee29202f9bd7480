"""Depth against width: the plan, and a tiny run from flags to report."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.experiments.planned import column, plan, refusal, spread
from tests.processes import TINY, flags, read, run


@pytest.mark.parametrize('match, name', [('params', 'parameters'), ('flops', 'FLOPs/token')])
@pytest.mark.parametrize('shape, head_dim', [((), 32), (('--preset=bench', '--baseline=6'), 64)])
def test_d_model_gives_way_to_depth(match, name, shape, head_dim) -> None:
  found = plan('shape', f'--match={match}', '--vary=2,6,1,3,4', *shape)
  assert spread(found, name) < 0.005
  assert column(found, 'ratio') == pytest.approx(dict.fromkeys(found, 4.0), rel=0.03)
  d_model, layers = column(found, 'd_model'), column(found, 'layers')
  widths = [d_model[name] for name in sorted(found, key=int)]
  assert widths == sorted(set(widths), reverse=True)
  for variant, row in found.items():
    assert layers[variant] == int(variant)
    assert float(row['aspect']) == pytest.approx(d_model[variant] / layers[variant], rel=0.01)
    heads, width = map(int, row['heads'].split(' × '))
    assert width == pytest.approx(head_dim, rel=0.3)
    assert heads * width == pytest.approx(d_model[variant], rel=0.06)


def test_without_a_budget_d_model_stays() -> None:
  found = plan('shape', '--match=none')
  assert list(found) == ['1', '2', '3', '4', '6']
  assert set(column(found, 'd_model').values()) == {96}


MISTAKES = {
  '--vary=2,0': '--model.num_layers: 0 is below the least allowed, 1',
  '--vary=2,two': "--vary=2,two: 'two' should be of type int, as model.num_layers is",
  '--vary=1,3': '--baseline=2: is not among --vary=1,3',
  '--ffn.d_ff=99': '--ffn.d_ff: follows d_model here; use --ffn.ratio, or --match=none',
  '--model.num_layers=3': '--model.num_layers: is varied by this experiment; use --vary',
}


@pytest.mark.parametrize('wrong', MISTAKES)
def test_a_mistake_is_one_line(wrong: str) -> None:
  assert refusal('shape', wrong) == MISTAKES[wrong]


@pytest.mark.exhaustive
def test_a_tiny_run_from_flags_to_report(tmp_path: Path) -> None:
  """With another d_model in each cell; and the folder refuses what would not compare."""
  workdir = tmp_path / 'run'
  settings = {k: v for k, v in TINY.items() if k != 'model.num_layers'} | {'train.steps': 4}
  args = [f'--workdir={workdir}', '--vary=1,3', '--baseline=1', '--seeds=0', *flags(settings)]
  ended = run('experiments.shape', *args)
  assert ended.returncode == 0, ended.stderr
  cells = read(workdir / 'experiment.json')['cells']
  assert [(c['variant'], c['num_layers']) for c in cells] == [('1', 1), ('3', 3)]
  assert cells[0]['d_model'] > cells[-1]['d_model']
  assert cells[-1]['params'] == pytest.approx(cells[0]['params'], rel=0.005)
  assert (workdir / 'report.html').exists()
  assert read(workdir / 'references.json')['unigram'] > 0
  other = run('experiments.shape', *args, '--match=flops')
  assert other.returncode == 2
  assert other.stderr == (
    f'error: --workdir={workdir}: holds runs of another configuration (--match is params there, '
    'flops asked); choose another folder\n'
  )
