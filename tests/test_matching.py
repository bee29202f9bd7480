"""Widths and depths solved for an equal budget: nearest of all, within half a unit, or refused."""

from __future__ import annotations

import pytest

from tests import battery
from tests.test_count import ACTIVATIONS, preset
from transformer import count, matching, spec
from transformer.config import resolve, widths
from transformer.config.resolve import ratios
from transformer.errors import UserError


@pytest.mark.parametrize('activation', ACTIVATIONS)
@pytest.mark.parametrize('budget', matching.BUDGETS)
def test_the_pilot_is_equal_at_every_activation(activation, budget):
  relu = preset('pilot', **{'ffn.activation': 'relu'})
  target = matching.BUDGETS[budget](relu)
  asked = preset('pilot', **{'ffn.activation': activation})
  matched = matching.match_d_ff(asked, target, budget)
  declared = spec.parse('ffn.activation', activation)
  assert abs(matching.BUDGETS[budget](matched) / target - 1) < 0.001
  assert matched.ffn.ratio == matched.ffn.d_ff / 96
  if not declared.leaves:  # what has parameters of its own has a little less d_ff
    assert matched.ffn.d_ff == {1: 384, 2: 256}[len(declared.inputs)]
    assert count.params(matched) == 319_968
    assert count.flops_per_token(matched) == count.flops_per_token(relu)


@pytest.mark.parametrize('budget', matching.BUDGETS)
@pytest.mark.parametrize('multiple_of', [1, 8])
@pytest.mark.parametrize('d_ff', [24, 25, 40, 111])
def test_match_d_ff_is_within_half_a_unit(budget, multiple_of, d_ff):
  cost = matching.BUDGETS[budget]
  target = cost(battery.tiny(**{'ffn.d_ff': d_ff, 'ffn.bias': True}))
  asked = battery.tiny(
    **{'ffn.activation': 'swiglu', 'ffn.bias': True, 'ffn.multiple_of': multiple_of}
  )
  matched = matching.match_d_ff(asked, target, budget)
  assert matched.ffn.d_ff % multiple_of == 0
  here = matched.ffn.d_ff
  unit = cost(matched.replace(**{'ffn.d_ff': here + multiple_of})) - cost(matched)
  assert abs(cost(matched) - target) <= unit / 2
  assert resolve(matched) == matched


BRUTE = {  # what d_ff is solved for
  'prelu': {'ffn.activation': 'prelu', 'ffn.bias': True},
  'three layers': {'ffn.hidden_layers': 2, 'ffn.activation': 'swiglu'},  # grows with the square
  'shared': {'ffn.shared': True},
  'pattern': {'model.num_layers': 4, 'ffn.ratios': '1,3,0,2'},
  'ramp, in fours': {'model.num_layers': 3, 'ffn.ratios': 'ramp(1,4)', 'ffn.multiple_of': 4},
}


@pytest.mark.parametrize('budget', matching.BUDGETS)
@pytest.mark.parametrize('name', BRUTE)
def test_match_d_ff_is_the_nearest_of_all(name, budget):
  config, cost = battery.tiny(**BRUTE[name]), matching.BUDGETS[budget]
  step, pattern = config.ffn.multiple_of, ratios(config)
  all_costs = [cost(resolve(config.replace(**{'ffn.d_ff': n * step}))) for n in range(1, 60)]
  for target in range(all_costs[2], all_costs[-3], (all_costs[-1] - all_costs[0]) // 25):
    matched = matching.match_d_ff(config, target, budget)
    assert abs(cost(matched) - target) == min(abs(c - target) for c in all_costs)
    if config.ffn.ratios:  # all layers scale together
      ideal = [r * matched.ffn.d_ff * len(pattern) / sum(pattern) for r in pattern]
      assert widths(matched) == pytest.approx(ideal, abs=step / 2)


@pytest.mark.parametrize('budget', matching.BUDGETS)
@pytest.mark.parametrize('text', ['', '2,4', 'ramp(1,3)'])
def test_match_depth_takes_the_nearest_number_of_layers(text, budget):
  cost, asked = matching.BUDGETS[budget], preset('pilot', **{'ffn.ratios': text})
  asked = asked.replace(**{'ffn.d_ff': 0})
  step = 2 if text == '2,4' else 1
  costs = {
    n: cost(resolve(asked.replace(**{'model.num_layers': n}))) for n in range(step, 16, step)
  }
  for target in (costs[4], (costs[4] + 3 * costs[6]) // 4, costs[10] + 1):
    matched = matching.match_depth(asked, target, budget)
    assert matched.model.num_layers == min(costs, key=lambda n: abs(costs[n] - target))
    assert abs(cost(matched) / target - 1) <= 0.004


@pytest.mark.parametrize('budget', matching.BUDGETS)
@pytest.mark.parametrize('ratio', [0.25, 1.0, 4.0, 16.0])
@pytest.mark.parametrize('activation', ['relu', 'geglu'])
def test_match_width_meets_the_budget_and_nearly_the_ratio(budget, ratio, activation):
  cost, base = matching.BUDGETS[budget], preset('pilot')
  target = cost(base)
  asked = base.replace(**{'ffn.activation': activation, 'ffn.ratio': ratio, 'ffn.d_ff': 0})
  matched = matching.match_width(asked, target, budget)
  unit = cost(matched.replace(**{'ffn.d_ff': matched.ffn.d_ff + 1})) - cost(matched)
  assert abs(cost(matched) - target) <= unit / 2
  assert matched.ffn.d_ff == pytest.approx(ratio * matched.model.d_model, rel=0.05, abs=2)
  model = matched.model
  assert (model.num_heads, model.head_dim % 2, model.d_model % 2) == (3, 0, 0)
  assert abs(model.num_heads * model.head_dim - model.d_model) <= 8
  assert resolve(matched) == matched


@pytest.mark.parametrize('budget', matching.BUDGETS)
def test_match_width_without_an_ffn_and_with_a_pattern(budget):
  cost, base = matching.BUDGETS[budget], preset('pilot', **{'model.num_layers': 4})
  target = cost(base)
  bare = matching.match_width(base.replace(**{'ffn.ratio': 0.0, 'ffn.d_ff': 0}), target, budget)
  assert abs(cost(bare) / target - 1) <= 0.004
  assert bare.ffn.d_ff == 0
  pattern = base.replace(**{'ffn.ratios': '2,4,8,4', 'ffn.d_ff': 0})
  found = matching.match_width(pattern, target, budget)
  assert abs(cost(found) / target - 1) <= 0.004
  assert [w / found.model.d_model for w in widths(found)] == pytest.approx([2, 4, 8, 4], rel=0.04)


@pytest.mark.parametrize('budget', matching.BUDGETS)
@pytest.mark.parametrize('ratio, layers', [(0.0, 18), (0.25, 16), (1.0, 12), (4.0, 6), (16.0, 2)])
def test_match_depth_meets_the_budget_at_the_ratio(budget, ratio, layers):
  cost, base = matching.BUDGETS[budget], preset('bench')
  asked = base.replace(**{'ffn.ratio': ratio, 'ffn.d_ff': 0})
  matched = matching.match_depth(asked, cost(base), budget)
  assert abs(cost(matched) / cost(base) - 1) <= 0.004
  assert matched.ffn.ratio == pytest.approx(ratio, rel=0.05)
  assert matched.model.d_model == pytest.approx(256, rel=0.06)
  if budget == 'params':
    assert matched.model.num_layers == layers


@pytest.mark.parametrize('layers, heads, kv', [(1, 8, 4), (6, 4, 2), (12, 4, 2)])
def test_match_width_with_heads_of_a_width_keeps_groups_of_queries(layers, heads, kv):
  base = preset('bench', **{'model.num_kv_heads': 2})
  asked = base.replace(**{'model.num_layers': layers, 'ffn.d_ff': 0})
  model = matching.match_width(asked, count.params(base), 'params', head_dim=64).model
  assert (model.num_heads, model.num_kv_heads) == (heads, kv)
  assert model.head_dim == pytest.approx(64, rel=0.25)


def test_match_width_finds_the_shape_it_came_from():
  base = preset('bench')
  matched = matching.match_width(base.replace(**{'ffn.d_ff': 0}), count.params(base), 'params')
  assert (matched.model.d_model, matched.ffn.d_ff) == (256, 1024)


def test_budgets_too_small():
  config = battery.tiny(**{'ffn.activation': 'swiglu', 'ffn.multiple_of': 8})
  with pytest.raises(UserError) as e:
    matching.match_d_ff(config, 1000, 'params')
  assert str(e.value) == (
    '--match=params: swiglu at d_model=16 is over the budget of 1,000 even with d_ff=8; '
    'choose another --baseline or --match=none'
  )
  with pytest.raises(UserError) as e:
    matching.match_width(config.replace(**{'ffn.d_ff': 0, 'ffn.ratio': 16.0}), 10, 'flops')
  assert str(e.value) == '--match=flops: ratio 16 is over the budget of 10'
  with pytest.raises(UserError) as e:
    matching.match_depth(config, 100, 'params')
  assert str(e.value) == '--match=params: one layer is over the budget of 100'
  with pytest.raises(UserError) as e:
    matching.match_depth(battery.tiny(**{'ffn.ratios': '2,4'}), 100, 'params')
  assert str(e.value) == '--match=params: 2 layers are over the budget of 100'


def test_depth_that_costs_nothing():
  bare = {'ffn.shared': True, 'model.num_heads': 0, 'model.positions': 'none'}
  config = battery.tiny(**bare, **{'model.norm': 'none'})
  with pytest.raises(UserError) as e:
    matching.match_depth(config, 10_000, 'params')
  assert str(e.value) == (
    '--match=params: more layers cost nothing where all share their parameters'
  )
  assert matching.match_depth(config, 10_000, 'flops').model.num_layers > 1
