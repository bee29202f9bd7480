"""Budgets, values and names that experiments.activations plans; other scripts have files of their
own.
"""

from __future__ import annotations

import pytest

from tests.experiments.planned import column, plan, refusal, spread
from transformer import spec


def test_activations_have_equal_parameters_or_flops() -> None:
  found = plan('activations')
  assert list(found) == ['relu', 'gelu', 'silu', 'relu2', 'geglu', 'swiglu', 'identity']
  assert spread(found, 'parameters') == spread(found, 'FLOPs/token') == 0
  assert (found['relu']['d_ff'], found['swiglu']['d_ff']) == ('384', '256')
  assert (found['relu']['ratio'], found['swiglu']['ratio']) == ('4', '2.67')
  none = plan('activations', '--match=none', '--vary=relu,swiglu', '--seeds=0..7')
  assert none['swiglu']['d_ff'] == none['relu']['d_ff'] == '384'
  assert none['relu']['seeds'] == '8'


@pytest.mark.parametrize('match, name', [('params', 'parameters'), ('flops', 'FLOPs/token')])
def test_all_activations_keep_to_the_budget(match: str, name: str) -> None:
  found = plan('activations', '--vary=all', f'--match={match}')
  assert set(found) == set(spec.variants('ffn.activation')) - {'product'}
  assert spread(found, name) < 0.005


@pytest.mark.parametrize(
  'vary, names',
  [
    ('relu, gelu ,relu', ['relu', 'gelu']),
    (
      'relu,leaky_relu(0.1),product(silu, identity)',
      ['relu', 'leaky_relu(0.1)', 'product(silu, identity)'],
    ),
    ('relu; product(on_gate=tanh,on_up=mish) ;', ['relu', 'product(on_gate=tanh,on_up=mish)']),
  ],
)
def test_values_are_parted_outside_brackets_and_told_once(vary: str, names: list[str]) -> None:
  found = plan('activations', f'--vary={vary}', '--seeds=0,2,5')
  assert list(found) == names
  assert {row['seeds'] for row in found.values()} == {'3'}
  assert spread(found, 'parameters') == 0


def test_the_rate_follows_each_d_model() -> None:
  """A cell is planned from what was asked, so what is left to resolve follows its own shape."""
  from experiments import ffn_width, lab
  from transformer.config import PRESETS, Config

  lab.FLAGS(['', '--match=params'])
  asked = Config().replace(**PRESETS['pilot'])
  narrow = ffn_width.config_of(asked, '16', 319_968)
  assert narrow.model.d_model == 60
  assert narrow.optim.learning_rate == pytest.approx(0.768 / 60, rel=1e-3)
  assert narrow.train.eval_every == 400


MISTAKES = {
  '--vary=': '--vary=: names no value of ffn.activation',
  '--vary=relu,relu()': '--vary=relu,relu(): relu and relu() are the same; leave one out',
  '--vary=relu,product(geglu)': '--ffn.activation: product takes plain activations, not geglu',
  '--ffn.ratio=0': '--ffn.ratio=0: leaves no FFN whose activation could be compared',
}


@pytest.mark.parametrize('wrong', MISTAKES)
def test_a_mistake_is_one_line(wrong: str) -> None:
  assert refusal('activations', wrong) == MISTAKES[wrong]


def test_no_column_is_shown_that_says_nothing() -> None:
  told = ['seeds', 'd_model', 'd_ff', 'parameters', 'FLOPs/token', 'state']
  assert list(plan('activations', '--vary=relu,gelu')['relu']) == told
  assert column(plan('train'), 'd_ff') == {'gelu': 384}
