"""Accounting: parameters equal the tree, FLOPs equal the products of the jaxpr, budgets are met."""

from __future__ import annotations

from math import prod

import jax
import jax.numpy as jnp
import pytest

from tests import battery, pairwise
from transformer import count, model, params, spec, step
from transformer.config import PRESETS, Config, resolve, widths

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
  'grouped heads, own parameters': {
    'model.num_heads': 4,
    'model.num_kv_heads': 2,
    'model.qk_norm': True,
    'model.attention_cap': 3.0,
    'ffn.activation': 'product(leaky_relu(0.1), prelu)',
    'model.positions': 'relative',
    'model.tied': False,
  },
  'three layers': {'ffn.hidden_layers': 2, 'ffn.activation': 'prelu', 'ffn.bias': True},
  'pattern': {'model.num_layers': 4, 'ffn.ratios': '1,1,2,0', 'model.norm_placement': 'sandwich'},
  'shared': {'ffn.shared': True, 'model.parallel_branches': True, 'ffn.activation': 'swiglu'},
  'no attention': {'model.num_heads': 0, 'model.positions': 'learned', 'model.norm': 'none'},
  'no ffn': {'ffn.d_ff': 0, 'ffn.ratio': 0.0, 'model.norm_placement': 'post'},
  'encoder': {
    'model.architecture': 'encoder',
    'model.head': 'transform',
    'model.token_types': 2,
    'model.v_head_dim': 3,
    'model.attention_window': 2,  # the reference computes all scores
  },
  'source': {
    'model.architecture': 'encoder_decoder',
    'model.num_encoder_layers': 3,
    'model.num_kv_heads': 1,
    'model.v_head_dim': 3,
    'model.positions': 'learned',
    'model.shared_source': False,
    'ffn.encoder_ratios': '1,1,2',
    'ffn.encoder_activation': 'swiglu',
    'ffn.ratios': '0,2',
    'data.source_len': 5,
    'train.accumulate': 2,
  },
  'source, shared': {
    'model.architecture': 'encoder_decoder',
    'ffn.shared': True,
    'model.parallel_branches': True,
    'model.tied': False,
  },
}
ROWS, _ = pairwise.rows()


def preset(name: str, **changes) -> Config:
  return resolve(Config().replace(**PRESETS[name] | changes))


def abstract(config: Config) -> dict:
  return jax.eval_shape(lambda: params.initialize(config, jax.random.key(0)))


def inputs(config: Config) -> list[jax.ShapeDtypeStruct]:
  """What a model takes: tokens and segments, or source and target."""
  rows, length = config.data.batch_size, config.data.seq_len
  shapes = (rows, config.data.source_len or length), (rows, length)
  return [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes]


def small(name: str | int) -> Config:
  """One of SHAPES, or of the pairwise set."""
  return battery.tiny(**SHAPES[name]) if name in SHAPES else pairwise.config_of(ROWS[name])


@pytest.mark.parametrize('name', [*SHAPES, *range(len(ROWS))])
def test_flops_are_the_products_of_the_forward_pass(name):
  config = small(name)
  forward = jax.make_jaxpr(lambda p, *x: model.build(config).apply({'params': p}, *x)[0])
  per_token = sum(count.flops_by_part(config).values())
  with battery.references():
    counted = battery.dot_flops(forward(abstract(config), *inputs(config)))
  assert counted == pytest.approx(per_token * config.data.batch_size * config.data.seq_len, abs=0.1)


@pytest.mark.parametrize('name', SHAPES)
def test_flops_are_the_products_of_a_training_step(name):
  """The whole step, optimizer included: three times the forward pass and not one product more."""
  from transformer import state

  config = battery.tiny(**SHAPES[name])
  current = jax.eval_shape(lambda: state.create(config, 0, state.hyper_arrays(config)))
  rows, length = config.data.batch_size, config.data.seq_len
  batch = {
    'tokens': jax.ShapeDtypeStruct((rows, config.data.source_len + length + 1), jnp.int32),
    'rows': jax.ShapeDtypeStruct((rows,), jnp.int32),
  }
  train = jax.make_jaxpr(lambda s, b: step.train_step(config, s, b, lambda x: x))
  with battery.references():
    counted = battery.dot_flops(train(current, batch))
  assert counted == pytest.approx(count.flops_per_token(config) * rows * length, abs=0.1)


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


BY_HAND = {'attention projections': 4096, 'attention scores': 1024, 'ffn': 3072, 'logits': 1024}


def test_flops_by_hand():
  """d 16, 2 layers, 2 heads of 8, d_ff 24, vocabulary 32, 8 tokens; 2 FLOPs a multiply-add.

  Projections: 2 layers · 4 · 2·16·16 = 4096. Scores and mixing: 2 · 2 · 2·8·16 = 1024.
  FFN: 2 · 2 · 2·16·24 = 3072; gated: 4608. Logits: 2·16·32 = 1024.
  """
  assert count.flops_by_part(battery.tiny()) == BY_HAND
  assert count.flops_by_part(battery.tiny(**SHAPES['gated'])) == BY_HAND | {'ffn': 4608}
  assert count.flops_per_token(battery.tiny()) == 3 * 9216
  config = battery.tiny(**{'train.steps': 10})
  assert count.train_tokens(config) == 10 * 8 * 8
  assert count.train_flops(config) == 640 * 3 * 9216


@pytest.mark.parametrize(
  ('changes', 'parts'),
  [
    # Keys and values of one head of two: 2 layers · 2·16·(16 + 8 + 8 + 16).
    ({'model.num_kv_heads': 1}, {'attention projections': 3072}),
    # Heads of 4, not 8: 2 · 4·2·16·8, and 2 · 2·2·8·8.
    ({'model.head_dim': 4}, {'attention projections': 2048, 'attention scores': 512}),
    # One more 24 → 24 a layer, two of them where it is gated: 3072 + 2·2·24·24.
    ({'ffn.hidden_layers': 2}, {'ffn': 5376}),
    ({'ffn.hidden_layers': 2, 'ffn.activation': 'glu'}, {'ffn': 4608 + 2 * 2304}),
    # Widths 16 and 32, whose mean is 24, cost the same; with three layers 2·(16² + 32²) more.
    ({'ffn.ratios': '1,2'}, {}),
    ({'ffn.ratios': '1,2', 'ffn.hidden_layers': 2}, {'ffn': 3072 + 2 * (16**2 + 32**2)}),
    ({'ffn.ratios': '0,1'}, {}),  # one FFN of 48
    ({'ffn.shared': True}, {}),  # the same products, fewer parameters
    ({'model.norm_placement': 'sandwich', 'model.qk_norm': True, 'model.tied': False}, {}),
    ({'ffn.activation': 'prelu', 'model.positions': 'alibi', 'model.logit_cap': 1.0}, {}),
    ({'ffn.d_ff': 0, 'ffn.ratio': 0.0}, {'ffn': 0}),
    (
      {'model.num_heads': 0, 'model.positions': 'none'},
      {'attention projections': 0, 'attention scores': 0},
    ),
  ],
)
def test_flops_of_other_shapes_by_hand(changes, parts):
  assert count.flops_by_part(battery.tiny(**changes)) == BY_HAND | parts


@pytest.mark.parametrize(
  ('changes', 'parts'),
  [
    ({}, {}),
    ({'model.tied': False, 'model.logits_bias': True}, {'embedding': 2 * 512 + 32}),
    ({'model.num_kv_heads': 1}, {'attention': 1536}),
    ({'model.qkv_bias': True}, {'attention': 2048 + 2 * 3 * 16}),
    ({'model.bias': True}, {'attention': 2048 + 2 * 4 * 16}),
    ({'model.qk_norm': True}, {'norms': 80 + 2 * 2 * 8}),
    ({'model.positions': 'relative(buckets=8)'}, {'embedding': 512 + 8 * 2}),
    ({'model.positions': 'learned'}, {'embedding': 512 + 8 * 16}),
    ({'model.norm_placement': 'post'}, {'norms': 64}),
    ({'model.norm_placement': 'sandwich'}, {'norms': 144}),
    ({'model.parallel_branches': True}, {'norms': 48}),
    ({'model.norm': 'layernorm'}, {'norms': 160}),
    ({'model.norm': 'none'}, {'norms': 0}),
    ({'ffn.shared': True}, {'ffn': 768}),
    ({'ffn.hidden_layers': 2, 'ffn.bias': True}, {'ffn': 1536 + 2 * (24 * 24 + 24 + 24 + 16)}),
    ({'ffn.activation': 'prelu', 'ffn.hidden_layers': 2}, {'ffn': 1536 + 2 * (576 + 48)}),
    ({'ffn.activation': 'product(prelu, prelu)'}, {'ffn': 2304 + 2 * 48}),
    ({'ffn.ratios': '0,3'}, {'norms': 64}),  # one FFN of 48, and its norm
  ],
)
def test_parameters_by_hand(changes, parts):
  """d 16, 2 layers, 2 heads of 8, d_ff 24, vocabulary 32, 8 tokens.

  32·16; 2 layers · 4·16·16; 2 · 2·16·24; 5 norms of 16.
  """
  expected = {'embedding': 512, 'attention': 2048, 'ffn': 1536, 'norms': 80}
  assert count.params_by_part(battery.tiny(**changes)) == expected | parts


def test_groups_are_runs_of_equal_layers():
  config = battery.tiny(**{'model.num_layers': 6, 'ffn.ratios': '1,1,2,0,1,1'})
  assert widths(config) == [24, 24, 48, 0, 24, 24]
  assert count.groups(config) == [
    count.Group('layers_0', 0, 2, 24),
    count.Group('layers_2', 2, 1, 48),
    count.Group('layers_3', 3, 1, 0),
    count.Group('layers_4', 4, 2, 24),
  ]
  even = battery.tiny(**{'ffn.ratios': '3,3'})
  assert count.groups(even) == [count.Group('layers', 0, 2, 24)]


@pytest.mark.parametrize('name', [*PRESETS, *SHAPES, *range(len(ROWS))])
def test_parameters_equal_the_tree(name):
  config = preset(name) if name in PRESETS else small(name)
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
