"""The plain Linen decoder that speed is compared with is the same mathematics as ours."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import battery, processes, reference_linen
from transformer import count, state, step
from transformer.config import Config

SHAPE = reference_linen.Shape(
  d_model=16, num_layers=2, num_heads=2, d_ff=24, vocab_size=32, batch_size=4, seq_len=8
)


def ours(**changes: object) -> Config:
  return battery.tiny(**{'ffn.activation': 'gelu_tanh', 'data.batch_size': 4} | changes)


def theirs(params: dict) -> dict:
  """Our parameters under the names of the plain decoder's."""
  layers = params['layers']
  found = {name: params[name] for name in ('final_norm',)}
  found['embed'] = {'embedding': params['embed']['table']}
  for i in range(SHAPE.num_layers):
    own = {name: {'scale': layers[name]['scale'][i]} for name in ('attention_norm', 'ffn_norm')}
    for part, names in (('attention', ('query', 'key', 'value', 'out')), ('ffn', ('up', 'down'))):
      own |= {name: {'kernel': layers[part][name][i]} for name in names}
    found[f'block_{i}'] = own
  return found


def tokens() -> np.ndarray:
  """Rows of one document each: no token 0."""
  return np.random.default_rng(1).integers(1, SHAPE.vocab_size, (4, 9), np.int32)


@pytest.mark.parametrize(('gelu', 'attention'), [('tanh', 'einsum'), ('exact', 'jax')])
def test_loss_and_gradient_are_ours(gelu: str, attention: str) -> None:
  shape = dataclasses.replace(SHAPE, gelu=gelu, attention=attention)
  config = ours(**{'ffn.activation': 'gelu_tanh' if gelu == 'tanh' else 'gelu'})
  fresh = state.create(config, np.uint32(0), state.hyper_arrays(config))
  batch = {'tokens': jnp.asarray(tokens()), 'rows': jnp.arange(4)}
  grads, sums = jax.jit(lambda s: step.gradient(config, s, batch, lambda x: x))(fresh)
  loss = jax.jit(jax.value_and_grad(lambda p: reference_linen.loss(shape, p, batch['tokens'])))
  value, expected = loss(theirs(fresh.params))
  np.testing.assert_allclose(sums['nats'] / sums['targets'], value, rtol=1e-5)
  same = functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-6)
  jax.tree.map(same, theirs(grads), expected)
  # The comparison can fail: another weight gives another loss.
  moved = theirs(fresh.params)
  moved['block_1']['up']['kernel'] = moved['block_1']['up']['kernel'].at[0, 0].add(0.5)
  assert abs(loss(moved)[0] - value) > 1e-4


def test_steps_are_ours() -> None:
  """Clipping, AdamW, its decay and schedule: the same weights after three steps."""
  config = ours(**{'train.steps': 1000})
  mine = state.create(config, np.uint32(0), state.hyper_arrays(config))
  other = reference_linen.create(SHAPE).replace(params=theirs(mine.params))
  other = other.replace(opt_state=other.tx.init(other.params))
  batch = {'tokens': jnp.asarray(tokens()), 'rows': jnp.arange(4)}
  take = jax.jit(lambda s, b: step.train_step(config, s, b, lambda x: x))
  plain = jax.jit(lambda s, tokens: reference_linen.train_step(SHAPE, s, tokens))
  for _ in range(3):
    mine, _ = take(mine, batch)
    other, _ = plain(other, batch['tokens'])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    theirs(mine.params),
    other.params,
  )


@pytest.mark.exhaustive
def test_it_prints_what_a_benchmark_reads() -> None:
  small = ('--d_model=16', '--num_layers=1', '--num_heads=2', '--vocab_size=32', '--seq_len=8')
  ran = processes.run('tests.reference_linen', *small, '--batch_size=4', '--json', '--seconds=0.01')
  told = json.loads(ran.stdout)
  assert told['tokens_per_s'] == pytest.approx(32e3 / told['step_ms'])
  assert told['params'] == count.params(
    battery.tiny(**{'model.num_layers': 1, 'ffn.d_ff': 64, 'data.batch_size': 4})
  )
