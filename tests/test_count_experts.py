"""Accounting of experts: trees, products, what a token meets, published totals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from tests import battery
from tests.test_count import BY_HAND, inputs
from transformer import count, model, state, step
from transformer.config import Config, resolve
from transformer.params import merge, path_of

EXPERTS = {'moe.experts': 4, 'moe.dispatch': 'capacity'}  # factor 1, and whole places
BOTH = {'model.architecture': 'encoder_decoder', 'data.source_len': 4}
AHEAD = {'moe.allow_noncausal': True}
SHAPES = {
  'topk': {},
  'by choice': {'moe.dispatch': "capacity(priority='choice')"} | AHEAD,
  'split, in groups': {
    'moe.router': 'switch',
    'moe.granularity': 2,
    'moe.group_size': 4,
    'ffn.activation': 'swiglu',
  },
  'bias, shared, pattern': {
    'moe.router': 'bias',
    'moe.shared_experts': 2,
    'moe.layers': 'every(2)',
    'model.num_layers': 3,
    'ffn.bias': True,
    'ffn.activation': 'prelu',
  },
  'random': {'moe.router': 'random'},
  'hash': {'moe.router': 'hash(k=2, balanced=True)', 'moe.layers': '0'},
  'dense': {'moe.router': 'dense', 'moe.dispatch': 'dense'},
  'expert choice': {'moe.router': 'expert_choice'} | AHEAD,
  'soft': {'moe.router': 'soft', 'moe.shared_experts': 1, 'ffn.hidden_layers': 2} | AHEAD,
  'soft, slots': {'moe.router': 'soft(slots=3)', 'moe.group_size': 4} | AHEAD,
  'source': BOTH
  | {'model.num_encoder_layers': 3, 'moe.encoder_layers': 'last(1)', 'moe.layers': '0'},
  'source alone': BOTH
  | {'moe.router': 'expert_choice', 'moe.encoder_layers': 'all', 'moe.layers': 'none'},
}


def small(name: str) -> Config:
  return battery.tiny(**EXPERTS | {'moe.capacity_factor': 1.0} | SHAPES[name])


@pytest.mark.parametrize('name', SHAPES)
def test_trees_are_those_of_the_state_and_of_linen(name):
  config = small(name)
  made = jax.eval_shape(lambda: state.create(config, 0, state.hyper_arrays(config)))
  assert shapes_of(made.params) == count.shapes(config)
  assert shapes_of(made.model_state) == count.kept(config)
  tokens = [jnp.zeros((1, config.data.source_len or 8), jnp.int32), jnp.zeros((1, 8), jnp.int32)]
  linen = jax.eval_shape(lambda: model.build(config).init(jax.random.key(0), *tokens))['params']
  assert shapes_of(linen) == shapes_of(made.variables)
  assert sum(count.params_by_part(config).values()) == count.params(config)


def shapes_of(tree: dict) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {path_of(path): leaf.shape for path, leaf in leaves}


@pytest.mark.parametrize('name', SHAPES)
def test_flops_are_the_products_of_forward_pass_and_step(name):
  """To the last one. A random router's scores have no gradient for weights; it is counted too."""
  config = small(name)
  rows, length = config.data.batch_size, config.data.seq_len
  current = jax.eval_shape(lambda: state.create(config, 0, state.hyper_arrays(config)))
  weights = merge(current.params, current.model_state)
  forward = jax.make_jaxpr(lambda p, *x: model.build(config).apply({'params': p}, *x)[0])
  counted = sum(count.flops_by_part(config).values()) * rows * length
  with battery.references():
    assert battery.dot_flops(forward(weights, *inputs(config))) == counted
  batch = {
    'tokens': jax.ShapeDtypeStruct((rows, config.data.source_len + length + 1), jnp.int32),
    'rows': jax.ShapeDtypeStruct((rows,), jnp.int32),
  }
  train = jax.make_jaxpr(lambda s, b: step.train_step(config, s, b, lambda x: x))
  untrained = 2 * 2 * 16 * 4 * rows * length if name == 'random' else 0
  with battery.references():
    assert battery.dot_flops(train(current, batch)) == 3 * counted - untrained


@pytest.mark.parametrize(
  ('changes', 'ffn', 'active', 'every'),
  [
    # 2 layers of a router, 16·4, of which a token meets 2 of 4 experts, each 2·16·24.
    ({}, 2 * 2 * (64 + 2 * 768), 2 * (64 + 2 * 768), 2 * (64 + 4 * 768)),
    # Each split in two: as much of twice as many, and a router twice as wide.
    ({'moe.granularity': 2}, 2 * 2 * (128 + 2 * 768), 2 * (128 + 2 * 768), 2 * (128 + 4 * 768)),
    # One expert of a hash that takes no product, and one for all tokens as wide as two.
    ({'moe.router': 'hash', 'moe.shared_experts': 2}, 2 * 2 * 3 * 768, 2 * 3 * 768, 2 * 6 * 768),
    # In one layer of two; the other is dense.
    ({'moe.layers': '1'}, 2 * (768 + 64 + 1536), 768 + 64 + 1536, 768 + 64 + 4 * 768),
    # 2 experts a token on average; of soft routing's 4 · 2 slots each 8 tokens long, one a token.
    (
      {'moe.router': 'expert_choice'} | AHEAD,
      2 * 2 * (64 + 2 * 768),
      2 * (64 + 2 * 768),
      2 * (64 + 4 * 768),
    ),
    (
      {'moe.router': 'soft'} | AHEAD,
      2 * 2 * (3 * 16 * 8 + 768),
      2 * (128 + 768),
      2 * (128 + 4 * 768),
    ),
    # Whatever a place costs, a choice counts once.
    (
      {'moe.dispatch': 'capacity', 'moe.capacity_factor': 1.5},
      2 * 2 * (64 + 2 * 768),
      2 * (64 + 2 * 768),
      2 * (64 + 4 * 768),
    ),
  ],
)
def test_by_hand(changes, ffn, active, every):
  """d 16, 2 layers, d_ff 24, 8 tokens; besides its FFN the model has 512 + 2048 + 80 parameters."""
  config = battery.tiny(**{'moe.experts': 4} | changes)
  assert count.flops_by_part(config) == BY_HAND | {'ffn': ffn}
  assert count.active_params(config) == 512 + 2048 + 80 + active
  assert count.params(config) == 512 + 2048 + 80 + every


def test_published_totals():
  """Mixtral 8x7B: 46.7 B parameters, 12.9 B of which a token uses (Jiang et al. 2024, and Mistral).

  Layers of attention 4096 · (2·4096 + 2·1024), a router, 8 experts of 3 · 4096 · 14336, two norms.
  """
  mixtral = {
    'model.d_model': 4096,
    'model.num_layers': 32,
    'model.num_heads': 32,
    'model.num_kv_heads': 8,
    'model.head_dim': 128,
    'model.vocab_size': 32000,
    'model.tied': False,
    'model.norm': 'rmsnorm',
    'ffn.d_ff': 14336,
    'ffn.activation': 'swiglu',
    'moe.experts': 8,
    'moe.router': 'topk(k=2)',
  }
  config = resolve(Config().replace(**battery.TINY | mixtral))
  expert = 3 * 4096 * 14336
  rest = 2 * 32000 * 4096 + 32 * (4096 * 10240 + 4096 * 8 + 2 * 4096) + 4096
  assert count.params(config) == rest + 32 * 8 * expert == 46_702_792_704
  assert count.active_params(config) == rest + 32 * 2 * expert == 12_879_925_248
