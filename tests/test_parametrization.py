"""muP: factors by hand from the table of the paper, and what training makes of them."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests import battery
from tests.test_count import SHAPES
from transformer import count, optimizer, parametrization, params
from transformer.config import PRESETS, Config, resolve
from transformer.state import hyper_arrays

# Four times the base of 8: d_model 32, two heads of 16 (base 4), d_ff 3 · 4 · 8 = 96.
WIDE = {
  'optim.parametrization': 'mup(base_d_model=8, base_head_dim=4)',
  'model.d_model': 32,
  'model.num_heads': 2,
  'ffn.d_ff': 96,
  'ffn.activation': 'swiglu',
  'ffn.bias': True,
  'model.bias': True,
  'model.qk_norm': True,
  'model.positions': 'learned',
  'model.tied': False,
  'model.logits_bias': True,
  'optim.learning_rate': 0.01,
}
FACTORS = {
  'embed/table': 1 / 2,  # √(8 / 32)
  'positions/table': 1 / 2,
  'unembed/table': 1 / 2,
  'layers/attention/query': 1 / 4,  # 8 / 32
  'layers/attention/key': 1 / 4,
  'layers/attention/value': 1 / 4,
  'layers/attention/out': 1 / 4,  # 8 / (2 · 16)
  'layers/ffn/up': 1 / 4,
  'layers/ffn/gate': 1 / 4,
  'layers/ffn/down': 1 / 3,  # 4 · 8 / 96
}


def test_factors_by_hand():
  config = battery.tiny(**WIDE)
  got = {path: parametrization.rate_factor(config, path) for path in count.shapes(config)}
  vectors = got.keys() - FACTORS.keys()
  assert {path: got[path] for path in FACTORS} == pytest.approx(FACTORS)
  assert {path.split('/')[-1] for path in vectors} == {
    *('scale', 'bias', 'query_bias', 'key_bias', 'value_bias', 'out_bias'),
    *('up_bias', 'gate_bias', 'down_bias'),
  }
  assert {got[path] for path in vectors} == {1.0}
  assert parametrization.logit_scale(config) == pytest.approx(1 / 2)
  assert parametrization.attention_scale(config) == pytest.approx(2 / 16)  # √4 / 16


def test_down_follows_d_ff_of_its_own_layer():
  """Ratios 2 and 6 of d_model 32: d_ff 64 and 192 against a base of 32."""
  config = battery.tiny(**WIDE | {'ffn.d_ff': 0, 'ffn.ratios': '2,6'})
  got = [parametrization.rate_factor(config, f'layers_{i}/ffn/down') for i in (0, 1)]
  assert got == pytest.approx([1 / 2, 1 / 6])


def test_the_scale_of_scores_knows_the_width_of_a_head_alone():
  """Where heads are added as the model widens, it stays; where they widen, it is theirs."""
  rule = 'mup(base_d_model=8, base_head_dim=16)'
  for heads, width, scale in ((2, 16, 1 / 4), (8, 16, 1 / 4), (2, 64, 4 / 64)):
    shape = {'model.num_heads': heads, 'model.head_dim': width}
    config = battery.tiny(**WIDE | shape | {'optim.parametrization': rule})
    assert parametrization.attention_scale(config) == pytest.approx(scale)


@pytest.mark.parametrize('name', [*PRESETS, *SHAPES])
def test_standard_leaves_everything_alone(name):
  settings = PRESETS[name] if name in PRESETS else battery.TINY | SHAPES[name]
  config = resolve(Config().replace(**settings))
  assert {parametrization.rate_factor(config, path) for path in count.shapes(config)} == {1.0}
  assert parametrization.logit_scale(config) == 1.0
  if config.model.num_heads:
    assert parametrization.attention_scale(config) == config.model.head_dim**-0.5


def test_at_its_base_mup_is_standard():
  settings = {'model.d_model': 16, 'ffn.d_ff': 64, 'optim.learning_rate': 0.01}
  plain = battery.tiny(**settings)
  mup = battery.tiny(
    **settings, **{'optim.parametrization': 'mup(base_d_model=16, base_head_dim=8)'}
  )
  for path in count.shapes(plain):
    assert parametrization.rate_factor(mup, path) == 1.0
  assert parametrization.logit_scale(mup) == 1.0
  assert parametrization.attention_scale(mup) == parametrization.attention_scale(plain)


def test_hidden_matrices_are_told_from_tables_and_vectors():
  config = battery.tiny(**WIDE)
  assert {path for path in count.shapes(config) if parametrization.hidden(path)} == {
    path for path in FACTORS if not path.endswith('table')
  }


def test_factors_multiply_steps_and_not_decay():
  """A first step of Adam is the gradient's sign; decay keeps the global rate."""
  config = battery.tiny(**WIDE | {'optim.name': 'adamw(eps=0)', 'optim.weight_decay': 0.2})
  numbers = hyper_arrays(config)
  weights = params.initialize(config, jax.random.key(0))
  grads = battery.jiggle(jax.tree.map(np.zeros_like, weights))
  state = optimizer.init(config, weights, numbers)
  scale = optimizer.clip(optimizer.global_norm(grads), numbers)
  got, _ = optimizer.update(config, grads, scale, state, weights, numbers, np.float32(0.1))
  got, before, grads = battery.flat(got), battery.flat(weights), battery.flat(grads)
  for path, value in before.items():
    decay = 0.2 * value if path in FACTORS or path == 'positions/table' else 0.0
    step = FACTORS.get(path, 1.0) * np.sign(grads[path]) + decay
    np.testing.assert_allclose(got[path], value - 0.1 * step, atol=1e-6, err_msg=path)
