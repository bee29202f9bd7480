"""The feed-forward network: right at every position, and at every position on its own."""

from __future__ import annotations

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import battery, reference
from transformer import spec
from transformer.activations import BODIES
from transformer.config import setting
from transformer.ffn import FFN, Aux
from transformer.ops.product import product

ACTIVATIONS = list(spec.variants('ffn.activation'))
B, T, D, F = 2, 5, 6, 7
X = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)


def make(activation: str, bias: bool = False) -> tuple[FFN, dict]:
  ffn = FFN(F, activation, bias)
  weights = ffn.init(jax.random.key(0), jnp.asarray(X))['params']
  return ffn, battery.jiggle(weights)


def apply(ffn: FFN, weights: dict, x: np.ndarray = X) -> jax.Array:
  return ffn.apply({'params': weights}, x)[0]


def oracle(weights: dict, activation: str, x: np.ndarray = X) -> np.ndarray:
  weights = {name: np.float64(leaf) for name, leaf in weights.items()}
  return np.stack([reference.ffn(weights, activation, np.float64(row)) for row in x])


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_against_loops_over_positions(activation, bias):
  ffn, weights = make(activation, bias)
  names = {'up', 'down'} | (
    {'gate'} if spec.variants('ffn.activation')[activation].gated else set()
  )
  assert set(weights) == names | {f'{n}_bias' for n in names if bias}
  expected = oracle(weights, activation)
  np.testing.assert_allclose(apply(ffn, weights), expected, atol=2e-5)
  for name in weights:  # negative control: every weight matters
    poked = apply(ffn, battery.poke(weights, name))
    assert np.max(np.abs(poked - expected)) > 1e-3, name


def test_returns_an_empty_aux():
  ffn, weights = make('gelu')
  assert ffn.apply({'params': weights}, X)[1] == Aux({}, {})


@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_positions_do_not_meet(activation):
  """∂y_t/∂x_s is 0 for s ≠ t, and is not 0 for s = t."""
  ffn, weights = make(activation, bias=True)
  one = lambda x_TD: apply(ffn, weights, x_TD[None])[0]  # noqa: E731
  jacobian_TDTD = np.asarray(jax.jacrev(one)(X[0]))
  for t in range(T):
    for s in range(T):
      assert np.any(jacobian_TDTD[t, :, s]) == (s == t)


@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_permuting_positions_permutes_the_output(activation):
  ffn, weights = make(activation, bias=True)
  order = np.random.default_rng(1).permutation(T)
  np.testing.assert_allclose(
    apply(ffn, weights, X[:, order]), apply(ffn, weights)[:, order], atol=1e-6
  )


@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_gradient_against_finite_differences(activation):
  """Of a random projection of the output, along a random direction of all weights and inputs."""
  ffn, weights = make(activation, bias=True)
  rng = np.random.default_rng(2)
  projection = rng.normal(size=X.shape)
  tree = {'w': weights, 'x': X}
  grads = jax.grad(lambda t: jnp.sum(apply(ffn, t['w'], t['x']) * projection))(tree)
  direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), tree)

  def value(amount: float) -> float:
    moved = jax.tree.map(lambda leaf, d: np.float64(leaf) + amount * d, tree, direction)
    return float(np.sum(oracle(moved['w'], activation, moved['x']) * projection))

  slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), grads, direction)))
  expected = (value(1e-6) - value(-1e-6)) / 2e-6
  assert slope == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_bfloat16_computes_in_bfloat16_from_float32_weights(activation):
  ffn, weights = make(activation, bias=True)
  got = apply(ffn, weights, jnp.asarray(X, jnp.bfloat16))
  assert got.dtype == jnp.bfloat16
  expected = oracle(weights, activation)
  np.testing.assert_allclose(
    np.asarray(got, np.float64), expected, atol=0.03 * np.max(np.abs(expected))
  )


def test_the_product_is_the_one_received():
  """A dense layer and experts share this code by the product they hand in."""
  calls = []

  def noted(dims, x, w):
    calls.append(dims)
    return product(dims, x, w)

  ffn, weights = make('swiglu')
  got = apply(FFN(F, 'swiglu', product=noted), weights)
  assert calls == ['btd,df->btf', 'btd,df->btf', 'btf,fd->btd']
  assert np.array_equal(got, apply(ffn, weights))


def test_second_call_compiles_nothing():
  ffn, weights = make('geglu')
  compiled = jax.jit(functools.partial(apply, ffn))
  weights = jax.tree.map(jnp.asarray, weights)
  compiled(weights, jnp.asarray(X))
  with battery.compilations() as seconds:
    compiled(weights, jnp.asarray(2 * X))
  assert seconds == [] and compiled._cache_size() == 1


def test_the_arguments_of_an_activation_reach_its_body(monkeypatch):
  monkeypatch.setitem(spec._DECLARED, 'ffn.activation', dict(spec.variants('ffn.activation')))

  @spec.declare('ffn.activation', 'scaled')
  class Scaled:
    """slope · x."""

    gated: ClassVar[bool] = False
    slope: float = setting(1.0, 'factor')

  monkeypatch.setitem(BODIES, 'scaled', lambda x, slope: slope * x)
  x_BTD = np.ones((1, 2, 3), np.float32)
  weights = FFN(d_ff=4, activation='scaled').init(jax.random.key(0), x_BTD)
  one, three = (
    FFN(d_ff=4, activation=name).apply(weights, x_BTD)[0] for name in ('scaled', 'scaled(slope=3)')
  )
  np.testing.assert_allclose(3 * one, three, rtol=1e-5)
