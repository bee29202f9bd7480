"""Bytes of the optimizer's state, as the optimizer really makes it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from tests import battery
from transformer import count, memory, spec, state
from transformer.config import Config

NAMES = [*spec.variants('optim.name'), 'adafactor(factor_from=8)', 'adafactor(factor_from=1)']
SHAPES = {
  'tiny': {},
  'd_v, grouped': {
    'model.num_heads': 4,
    'model.num_kv_heads': 2,
    'model.v_head_dim': 3,
    'model.bias': True,
    'model.positions': 'relative',
  },
  'experts': {'moe.experts': 3, 'moe.router': 'bias', 'moe.shared_experts': 1, 'ffn.bias': True},
  'both': {'model.architecture': 'encoder_decoder', 'model.shared_source': False},
  'one layer': {
    'moe.experts': 3,
    'moe.layers': '1',
    'moe.shared_experts': 1,
    'ffn.bias': True,
  },
}


def made(config: Config) -> int:
  """Bytes of the optimizer's arrays, less counters, constants and stand-ins."""
  whole = jax.eval_shape(lambda: state.create(config, 0, state.hyper_arrays(config)))
  found = jax.tree_util.tree_leaves_with_path(whole.opt_state)
  return sum(
    x.size * x.dtype.itemsize
    for path, x in found
    if x.dtype == jnp.float32 and x.shape and x.shape[-1] > 1 and 'ns_coeffs' not in str(path)
  )


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('name', NAMES)
def test_moments_are_what_the_optimizer_makes(name, shape):
  config = battery.tiny(**SHAPES[shape], **{'optim.name': name})
  assert memory.state(config)['moments'] == made(config)


def test_by_hand():
  """3,664 + 512 numbers: AdamW keeps two more of each, Lion one, and a moving average another."""
  config = battery.tiny()
  each = 4 * count.params(config)
  whole = {'parameters': each, 'gradient': each, 'moments': 2 * each}
  assert memory.state(config) == whole
  assert memory.state(battery.tiny(**{'optim.ema': 0.9})) == whole | {'average': each}
  assert memory.state(battery.tiny(**{'optim.name': 'lion'})) == whole | {'moments': each}
  biased = memory.state(battery.tiny(**{'moe.experts': 3, 'moe.router': 'bias'}))
  assert biased['kept by routers'] == 4 * 2 * 3  # a bias of each expert of two layers
  # A layer's up, 16 × 24, keeps 16 + 24; its query, 16 × (2 · 8), 16 + 16; a scale all 16.
  factored = battery.tiny(**{'optim.name': 'adafactor(factor_from=16)'})
  numbers = (32 + 16) + 2 * (4 * 32 + 2 * 40) + 5 * 16
  assert memory.state(factored)['moments'] == 4 * numbers
