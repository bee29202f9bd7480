"""Widths of the FFN: what gives way to them, and by how much the plan misses what was asked."""

from __future__ import annotations

import pytest

from tests.experiments.planned import column, plan, refusal, spread

BUDGETS = {'params': 'parameters', 'flops': 'FLOPs/token'}


@pytest.mark.parametrize('match', BUDGETS)
@pytest.mark.parametrize('shape', [(), ('--preset=bench',), ('--ffn.activation=swiglu',)])
def test_d_model_gives_way_to_a_wider_ffn(match: str, shape: tuple[str, ...]) -> None:
  found = plan('ffn_width', f'--match={match}', '--vary=4,0,0.25,1,2,8,16', *shape)
  assert spread(found, BUDGETS[match]) < 0.005
  achieved, d_model = column(found, 'ratio'), column(found, 'd_model')
  assert achieved == pytest.approx({name: float(name) for name in found}, rel=0.06)
  without, *widths = [d_model[name] for name in sorted(found, key=float)]
  assert widths == sorted(set(widths), reverse=True)
  assert without >= widths[1]
  assert found['0']['d_ff'] == '0'
  assert 'layers' not in found['4']


@pytest.mark.parametrize('match', BUDGETS)
@pytest.mark.parametrize('shape', [(), ('--preset=bench',)])
def test_depth_gives_way_to_a_wider_ffn(match: str, shape: tuple[str, ...]) -> None:
  args = ('--absorb=depth', '--vary=4,0,0.25,1,2,8,16', *shape)
  found = plan('ffn_width', f'--match={match}', *args)
  assert spread(found, BUDGETS[match]) < 0.005
  achieved, layers = column(found, 'ratio'), column(found, 'layers')
  assert achieved == pytest.approx({name: float(name) for name in found}, rel=0.07)
  depths = [layers[name] for name in sorted(found, key=float)]
  assert depths == sorted(depths, reverse=True)
  assert depths[0] > layers['4'] >= depths[-1]


def test_attention_alone_at_equal_parameters_is_three_times_as_deep() -> None:
  """A block at ratio 4 has 4 d² weights in attention and 8 d² in the FFN."""
  found = plan('ffn_width', '--absorb=depth', '--vary=0,4')
  assert (found['0']['layers'], found['4']['layers']) == ('6', '2')
  assert found['0']['d_model'] == found['4']['d_model'] == '96'
  assert found['0']['off budget'] == '+0.06 %'  # four norms more


def test_without_a_budget_d_model_stays() -> None:
  found = plan('ffn_width', '--match=none', '--vary=4,0,1,8')
  assert set(column(found, 'd_model').values()) == {96}
  assert column(found, 'd_ff') == {'4': 384, '0': 0, '1': 96, '8': 768}
  assert 'off budget' not in found['4']


@pytest.mark.parametrize('match', BUDGETS)
def test_patterns_over_layers_keep_to_the_budget(match: str) -> None:
  args = ('--model.num_layers=4', '--vary=4;2,4,8,4;ramp(2,6)', f'--match={match}')
  found = plan('ffn_width', *args)
  assert list(found) == ['4', '2,4,8,4', 'ramp(2,6)']
  assert spread(found, BUDGETS[match]) < 0.005
  assert column(found, 'ratio') == pytest.approx({'4': 4, '2,4,8,4': 4.5, 'ramp(2,6)': 4}, rel=0.03)
  deeper = plan('ffn_width', '--absorb=depth', '--vary=2;ramp(2,6)', '--baseline=2')
  assert int(deeper['ramp(2,6)']['layers']) == 1


MISTAKES = {
  ('--absorb=width',): '--absorb=width: choose from d_model, depth',
  ('--absorb=depth', '--match=none'): (
    '--absorb=depth: --match=none sets no budget to give way to'
  ),
  ('--absorb=depth', '--vary=4;2,6'): (
    '--vary=4;2,6: 2,6 sets the depth, so --absorb=depth cannot'
  ),
  ('--ffn.ratios=2,6',): '--ffn.ratios: is what this experiment varies; use --vary with ratios',
  ('--ffn.ratio=2',): '--ffn.ratio: is what this experiment varies; use --vary with ratios',
  ('--model.head_dim=8',): ('--model.head_dim: follows d_model here; set it with --match=none'),
  ('--vary=4;2,4,8,4',): ('--ffn.ratios=2,4,8,4: 4 ratios do not divide --model.num_layers=2'),
  ('--vary=4,all',): ("--ffn.ratios=all: should be numbers from 0 on, '2,4,8,4' or 'ramp(2,6)'"),
  ('--vary=all',): '--vary=all: ffn.ratio has no list of values; name some',
  ('--vary=4,4.0',): '--vary=4,4.0: 4 and 4.0 are the same; leave one out',
  ('--vary=4;2,6;ramp(2,6)',): (
    '--vary=4;2,6;ramp(2,6): 2,6 and ramp(2,6) are the same; leave one out'
  ),
  ('--vary=0,4', '--model.num_heads=0', '--model.positions=none'): (
    '--ffn.ratio=0: and --model.num_heads=0 leave nothing in a block'
  ),
  ('--vary=4,400', '--absorb=depth'): '--match=params: one layer is over the budget of 319,968',
}


@pytest.mark.parametrize('wrong', MISTAKES)
def test_a_mistake_is_one_line(wrong: tuple[str, ...]) -> None:
  assert refusal('ffn_width', *wrong) == MISTAKES[wrong]
