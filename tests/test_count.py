"""Accounting: parameters equal the tree, FLOPs equal the products of the jaxpr, budgets are met."""

from __future__ import annotations

from math import prod

import jax
import jax.numpy as jnp
import pytest

from tests import battery
from transformer import count, model, params, spec, step
from transformer.config import PRESETS, Config, resolve
from transformer.errors import UserError

ACTIVATIONS = list(spec.variants('ffn.activation'))
SHAPES = {
  'tiny': {},
  'gated': {'ffn.activation': 'swiglu'},
  'biased': {'ffn.bias': True, 'model.bias': True, 'model.norm': 'layernorm'},
  'gated and biased': {'ffn.activation': 'geglu', 'ffn.bias': True, 'model.positions': 'learned'},
  'odd': {
    'model.d_model': 18,
    'model.num_layers': 3,
    'model.num_heads': 3,
    'model.head_dim': 4,
    'model.vocab_size': 37,
    'ffn.d_ff': 7,
    'data.seq_len': 5,
    'data.batch_size': 3,
    'model.positions': 'sinusoidal',
  },
  'unrolled': {'model.unroll': True},
  'one layer': {'model.num_layers': 1},
  'accumulated': {'train.accumulate': 4},
  'dropout, bfloat16': {'model.dropout': 0.1, 'model.dtype': 'bfloat16'},
}


def preset(name: str, **changes) -> Config:
  return resolve(Config().replace(**PRESETS[name] | changes))


def abstract(config: Config) -> dict:
  return jax.eval_shape(lambda: params.initialize(config, jax.random.key(0)))


@pytest.mark.parametrize('name', SHAPES)
def test_flops_are_the_products_of_the_forward_pass(name):
  config = battery.tiny(**SHAPES[name])
  tokens = jax.ShapeDtypeStruct((config.data.batch_size, config.data.seq_len), jnp.int32)
  forward = jax.make_jaxpr(lambda p, x: model.build(config).apply({'params': p}, x, x)[0])
  per_token = sum(count.flops_by_part(config).values())
  counted = battery.dot_flops(forward(abstract(config), tokens))
  assert counted == per_token * config.data.batch_size * config.data.seq_len


@pytest.mark.parametrize('name', SHAPES)
def test_flops_are_the_products_of_a_training_step(name):
  """The whole step, optimizer included: three times the forward pass and not one product more."""
  from transformer import state

  config = battery.tiny(**SHAPES[name])
  current = jax.eval_shape(lambda: state.create(config, 0, state.hyper_arrays(config)))
  rows, length = config.data.batch_size, config.data.seq_len
  batch = {
    'tokens': jax.ShapeDtypeStruct((rows, length + 1), jnp.int32),
    'rows': jax.ShapeDtypeStruct((rows,), jnp.int32),
  }
  train = jax.make_jaxpr(lambda s, b: step.train_step(config, s, b, lambda x: x))
  assert battery.dot_flops(train(current, batch)) == count.flops_per_token(config) * rows * length


def test_the_counter_itself():
  """(3, 4) · (4, 5) is 2·3·4·5 = 120 FLOPs; in a scan of 7 in a jit, 840; with gradients, 3×."""
  x, w = jnp.ones((3, 4)), jnp.ones((4, 5))

  def many(w):
    return jax.lax.scan(jax.jit(lambda total, _: (total + jnp.sum(x @ w), None)), 0.0, length=7)[0]

  assert battery.dot_flops(jax.make_jaxpr(jnp.dot)(x, w)) == 120
  assert battery.dot_flops(jax.make_jaxpr(jax.jit(many))(w)) == 840
  both = jax.make_jaxpr(jax.grad(lambda x, w: jnp.sum((x @ w) ** 2), argnums=(0, 1)))
  assert battery.dot_flops(both(x, w)) == 360
  remat = jax.make_jaxpr(jax.grad(jax.checkpoint(lambda x: jnp.sum(jnp.sin(x @ w)))))
  assert battery.dot_flops(remat(x)) == 360  # forward, once more, and for x
  with pytest.raises(ValueError, match='products inside while cannot be counted'):
    battery.dot_flops(
      jax.make_jaxpr(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x.T, x))(
        jnp.ones((3, 3))
      )
    )


def test_flops_by_hand():
  """d 16, 2 layers, 2 heads of 8, d_ff 24, vocabulary 32, 8 tokens; 2 FLOPs a multiply-add.

  Projections: 2 layers · 4 · 2·16·16 = 4096. Scores and mixing: 2 · 2 · 2·8·16 = 1024.
  FFN: 2 · 2 · 2·16·24 = 3072; gated: 4608. Logits: 2·16·32 = 1024.
  """
  parts = {'attention projections': 4096, 'attention scores': 1024, 'ffn': 3072, 'logits': 1024}
  assert count.flops_by_part(battery.tiny()) == parts
  assert count.flops_by_part(battery.tiny(**SHAPES['gated'])) == parts | {'ffn': 4608}
  assert count.flops_per_token(battery.tiny()) == 3 * 9216
  config = battery.tiny(**{'train.steps': 10})
  assert count.train_tokens(config) == 10 * 8 * 8
  assert count.train_flops(config) == 640 * 3 * 9216


@pytest.mark.parametrize('name', [*PRESETS, *SHAPES])
def test_parameters_equal_the_tree(name):
  config = preset(name) if name in PRESETS else battery.tiny(**SHAPES[name])
  leaves = jax.tree_util.tree_flatten_with_path(abstract(config))[0]
  tree = {params.path_of(path): leaf.shape for path, leaf in leaves}
  assert count.shapes(config) == tree
  assert count.params(config) == sum(prod(shape) for shape in tree.values())
  assert sum(count.params_by_part(config).values()) == count.params(config)


def test_known_totals():
  """bench: 8192·256 + 6·(4·256² + 2·256·1024 + 2·256) + 256 = 6,819,072.

  gpt2: 124,439,808, the count published for the smallest GPT-2 (Radford et al. 2019, as released).
  """
  assert (
    count.params(preset('bench')) == 8192 * 256 + 6 * (4 * 256**2 + 2 * 256 * 1024 + 2 * 256) + 256
  )
  assert count.params(preset('bench')) == 6_819_072
  assert count.params(preset('gpt2')) == 124_439_808
  assert count.params_by_part(preset('pilot')) == {
    'embedding': 1024 * 96,
    'attention': 2 * 4 * 96 * 96,
    'ffn': 2 * 2 * 96 * 384,
    'norms': 5 * 96,
  }


@pytest.mark.parametrize('activation', ACTIVATIONS)
@pytest.mark.parametrize('budget', count.BUDGETS)
def test_the_pilot_is_equal_at_every_activation(activation, budget):
  relu = preset('pilot', **{'ffn.activation': 'relu'})
  target = count.BUDGETS[budget](relu)
  asked = preset('pilot', **{'ffn.activation': activation})
  matched = count.match_d_ff(asked, target, budget)
  gated = spec.variants('ffn.activation')[activation].gated
  assert matched.ffn.d_ff == (256 if gated else 384)
  assert matched.ffn.ratio == matched.ffn.d_ff / 96
  assert count.params(matched) == 319_968
  assert count.flops_per_token(matched) == count.flops_per_token(relu)


@pytest.mark.parametrize('budget', count.BUDGETS)
@pytest.mark.parametrize('multiple_of', [1, 8])
@pytest.mark.parametrize('d_ff', [24, 25, 40, 111])
def test_match_d_ff_is_within_half_a_unit(budget, multiple_of, d_ff):
  cost = count.BUDGETS[budget]
  target = cost(battery.tiny(**{'ffn.d_ff': d_ff, 'ffn.bias': True}))
  asked = battery.tiny(
    **{'ffn.activation': 'swiglu', 'ffn.bias': True, 'ffn.multiple_of': multiple_of}
  )
  matched = count.match_d_ff(asked, target, budget)
  assert matched.ffn.d_ff % multiple_of == 0
  here = matched.ffn.d_ff
  unit = cost(matched.replace(**{'ffn.d_ff': here + multiple_of})) - cost(matched)
  assert abs(cost(matched) - target) <= unit / 2
  assert resolve(matched) == matched


@pytest.mark.parametrize('budget', count.BUDGETS)
@pytest.mark.parametrize('ratio', [0.25, 1.0, 4.0, 16.0])
@pytest.mark.parametrize('activation', ['relu', 'geglu'])
def test_match_width_meets_the_budget_and_nearly_the_ratio(budget, ratio, activation):
  cost, base = count.BUDGETS[budget], preset('pilot')
  target = cost(base)
  asked = base.replace(**{'ffn.activation': activation})
  matched = count.match_width(asked, ratio, target, budget)
  unit = cost(matched.replace(**{'ffn.d_ff': matched.ffn.d_ff + 1})) - cost(matched)
  assert abs(cost(matched) - target) <= unit / 2
  # d_model moves in steps of 2 · heads = 6: d_ff takes what half a step of it leaves over.
  neighbours = [
    cost(
      resolve(matched.replace(**{'model.d_model': matched.model.d_model + d, 'model.head_dim': 0}))
    )
    for d in (-6, 6)
  ]
  slack = (neighbours[1] - neighbours[0]) / 2 / unit
  assert abs(matched.ffn.d_ff - ratio * matched.model.d_model) <= slack
  assert matched.model.head_dim * matched.model.num_heads == matched.model.d_model
  assert matched.model.head_dim % 2 == 0
  assert resolve(matched) == matched


def test_match_width_finds_the_shape_it_came_from():
  base = preset('bench')
  matched = count.match_width(base, 4.0, count.params(base), 'params')
  assert (matched.model.d_model, matched.ffn.d_ff) == (256, 1024)


def test_budgets_too_small():
  config = battery.tiny(**{'ffn.activation': 'swiglu', 'ffn.multiple_of': 8})
  with pytest.raises(UserError) as e:
    count.match_d_ff(config, 1000, 'params')
  assert str(e.value) == (
    '--match=params: swiglu at d_model=16 is over the budget of 1,000 even with d_ff=8'
  )
  with pytest.raises(UserError) as e:
    count.match_width(config, 16.0, 100, 'flops')
  assert str(e.value) == '--match=flops: ratio 16.0 is over the budget of 100'
