"""Dispatchers by hand, what they may see of the future, and how large their tensors may be."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import battery
from tests.experts import config_of, layer_of
from transformer import model, spec
from transformer.config import Config, routing
from transformer.dispatch import Place, dispatch
from transformer.routers import ExpertChoice, Soft, TokenChoice

# Of test_routers: the two best of four tokens among three experts, and their softmax renormalised.
A, B, C = 5 / 9, 2 / 3, 5 / 8
CHOSEN = TokenChoice(
  jnp.array([[(2, 1), (0, 1), (1, 0), (0, 1)]]),
  jnp.array([[(A, 1 - A), (B, 1 - B), (A, 1 - A), (C, 1 - C)]]),
)
ALL = np.array([(0, 1 - A, A), (B, 1 - B, 0), (1 - A, A, 0), (C, 1 - C, 0)])


def moved(mover: str, decision, capacity: int) -> tuple[np.ndarray, int]:
  """The weight that each token gets of each expert, (4, 3), and how many choices are dropped.

  x is (1, 0, 0), which expert e turns into the e-th unit vector.
  """
  x_GTD = jnp.zeros((1, 4, 3)).at[..., 0].set(1.0)
  w_EDE = jnp.zeros((3, 3, 3)).at[:, 0].set(jnp.eye(3))
  found = dispatch(spec.parse('moe.dispatch', mover), decision, x_GTD, Place(3, capacity))
  y_GTE = found.back(found.product('', found.rows, w_EDE))
  return np.asarray(y_GTE[0]), int(found.dropped)


@pytest.mark.parametrize('mover', ['dense', 'dropless', 'capacity', 'expert_parallel'])
def test_all_choices_find_a_place(mover):
  weights, dropped = moved(mover, CHOSEN, capacity=4)
  np.testing.assert_allclose(weights, ALL, rtol=1e-6)
  assert dropped == 0


@pytest.mark.parametrize('mover', ['capacity', 'expert_parallel'])
@pytest.mark.parametrize(
  ('priority', 'capacity', 'lost'),
  [
    # Expert 0 is the first choice of tokens 1 and 3 (2/3, 5/8), the second of 2 (4/9); expert 1
    # the first of 2 (5/9), the second of 0, 1, 3 (4/9, 1/3, 3/8); expert 2 the first of 0 (5/9).
    ('order', 3, [(3, 1)]),
    ('choice', 3, [(3, 1)]),
    ('score', 3, [(1, 1)]),
    ('order', 2, [(3, 0), (2, 1), (3, 1)]),
    ('choice', 2, [(2, 0), (1, 1), (3, 1)]),
    ('score', 2, [(2, 0), (1, 1), (3, 1)]),
    ('order', 1, [(2, 0), (3, 0), (1, 1), (2, 1), (3, 1)]),
    ('choice', 1, [(2, 0), (3, 0), (0, 1), (1, 1), (3, 1)]),
    ('score', 1, [(2, 0), (3, 0), (0, 1), (1, 1), (3, 1)]),
  ],
)
def test_who_is_dropped(priority, capacity, lost, mover):
  weights, dropped = moved(f'{mover}(priority={priority})', CHOSEN, capacity)
  expected = ALL.copy()
  for token, expert in lost:
    expected[token, expert] = 0
  np.testing.assert_allclose(weights, expected, rtol=1e-6)
  assert dropped == len(lost)


@pytest.mark.parametrize('mover', ['dense', 'dropless', 'capacity'])
def test_a_token_of_no_expert_gets_nothing_and_drops_nothing(mover):
  nowhere = TokenChoice(CHOSEN.experts_GTR.at[0, 1].set(3), CHOSEN.weights_GTR.at[0, 1].set(0.0))
  weights, dropped = moved(mover, nowhere, capacity=3)
  np.testing.assert_allclose(weights, ALL * [[1], [0], [1], [1]], rtol=1e-6)
  assert dropped == 0  # token 3 has the place of token 1


@pytest.mark.parametrize('mover', ['dense', 'capacity', 'expert_parallel'])
def test_what_experts_chose(mover):
  """A token that two took has two weights, one that none took has none; a weight of 0 is none."""
  tokens, weights = [[(1, 3), (2, 0), (0, 3)]], [[(0.6, 0.5), (0.5, 0.0), (0.5, 0.2)]]
  found, _ = moved(mover, ExpertChoice(jnp.array(tokens), jnp.array(weights)), capacity=2)
  np.testing.assert_allclose(found, [(0, 0, 0.5), (0.6, 0, 0), (0, 0.5, 0), (0.5, 0, 0.2)])


def test_mixtures():
  """One slot an expert: of a mean of ones each makes its unit vector, which `back` weighs."""
  back = np.array([(0.1, 0.4, 0.5), (0.6, 0.3, 0.1), (0.4, 0.5, 0.1), (0, 0, 0)])
  send = np.array([(0.2, 0.5, 0), (0.3, 0.5, 0), (0.5, 0, 0.75), (0, 0, 0)])  # to 2 only .75
  soft = Soft(*(jnp.asarray(z[None, ..., None], jnp.float32) for z in (send, back)))
  found, _ = moved('capacity', soft, capacity=1)
  np.testing.assert_allclose(found, back * (1, 1, 0.75), rtol=1e-6)


# --- What a token may see.

LOOKING_BACK = {
  kind: [name for name, v in spec.variants(f'moe.{kind}').items() if v().causal and name != 'auto']
  for kind in ('router', 'dispatch')
}
CAUSAL = list(itertools.product(LOOKING_BACK['router'], LOOKING_BACK['dispatch']))
FEW = [(router, mover) for router, mover in CAUSAL if router == 'topk' or mover == 'capacity']
LENGTH = 8


@functools.cache
def logits(config: Config):
  return jax.jit(lambda p, t: model.build(config).apply({'params': p}, t, jnp.zeros_like(t))[0])


def earliest_moved(router: str, mover: str) -> list[int]:
  """For each token of a sequence the first place whose logits another token there changes.

  In the whole decoder, with so few places that some choices are dropped.
  """
  config = config_of(router, mover, **{'model.d_model': 8, 'moe.capacity_factor': 0.6})
  weights = battery.weights(config)
  rng = np.random.default_rng(0)
  row = rng.integers(1, config.model.vocab_size, LENGTH)
  first = [LENGTH] * LENGTH
  for shift in range(1, 4):
    batch = np.tile(row, (LENGTH + 1, 1))
    at = np.arange(LENGTH)
    batch[at, at] = 1 + (row + 9 * shift) % (config.model.vocab_size - 1)
    whole = np.asarray(logits(config)(weights, batch.astype(np.int32)))
    moved = np.max(np.abs(whole[:-1] - whole[-1]), axis=-1) > 1e-5
    first = [min(f, int(np.argmax(m))) if m.any() else f for f, m in zip(first, moved, strict=True)]
  return first


@pytest.mark.parametrize(('router', 'mover'), FEW)
def test_what_is_declared_causal_sees_no_token_ahead(router, mover):
  """By replacement: a token moves the logits from its own on."""
  assert earliest_moved(router, mover) == list(range(LENGTH))


@pytest.mark.exhaustive
@pytest.mark.parametrize(('router', 'mover'), sorted(set(CAUSAL) - set(FEW)))
def test_what_is_declared_causal_sees_no_token_ahead_whole_product(router, mover):
  assert earliest_moved(router, mover) == list(range(LENGTH))


@pytest.mark.parametrize(
  ('router', 'mover'),
  [
    ('topk', 'capacity(priority=choice)'),
    ('topk', 'capacity(priority=score)'),
    ('expert_choice', 'capacity'),
    ('expert_choice', 'dense'),
    ('soft', 'capacity'),
  ],
)
def test_what_is_declared_to_look_ahead_does(router, mover):
  looks = [spec.parse(f'moe.{k}', v).causal for k, v in (('router', router), ('dispatch', mover))]
  assert not all(looks)
  assert any(first < t for t, first in enumerate(earliest_moved(router, mover)))


# --- No tensor of tokens x experts x capacity.


def largest(jaxpr) -> int:
  """Entries of the largest array that a jaxpr makes."""
  sizes = [0]
  for eqn in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
    sizes += [int(np.prod(v.aval.shape)) for v in eqn.outvars if hasattr(v.aval, 'shape')]
    for value in eqn.params.values():
      sizes += [largest(inner) for inner in battery._jaxprs(value)]
  return max(sizes)


@pytest.mark.parametrize(
  ('router', 'mover', 'small'),
  [
    ('topk', 'dropless', True),
    ('topk', 'capacity', True),
    ('topk', 'capacity(priority=score)', True),
    ('expert_choice', 'capacity', True),
    ('topk', 'dense', False),  # controls: every expert computes every token,
    ('soft', 'capacity', False),  # and every slot has some of every token
  ],
)
def test_no_tensor_of_tokens_by_experts_by_capacity(router, mover, small):
  """64 tokens, 8 experts of 20 places, or 16: in layer and gradient nothing of 64 · 8 · places."""
  sizes = {'moe.experts': 8, 'data.seq_len': 64, 'model.d_model': 20, 'ffn.d_ff': 20}
  config = config_of(router, mover, **sizes, **{'model.positions': 'none'})
  layer = layer_of(config)
  x, ids = jnp.ones((1, 64, 20)), jnp.ones((1, 64), jnp.int32)
  weights = jax.eval_shape(lambda: layer.init(jax.random.key(0), x, ids, jnp.int32(0)))

  def total(weights, x):
    return jnp.sum(layer.apply(weights, x, ids, jnp.int32(0))[0])

  jaxpr = jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(weights, x)
  places = 8 * routing.capacity(config, 64, training=True)
  assert (largest(jaxpr) < 64 * places) == small
