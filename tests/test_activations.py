"""Every declared activation has a body, and every body is right, smooth in use and steady."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests import battery, reference
from transformer import activations, spec

DECLARED = spec.variants('ffn.activation')
NAMES = sorted(activations.BODIES)
ORACLES = sorted([*reference.PLAIN, *reference.GATED])
X = np.concatenate([np.linspace(-6, 6, 97), [-40, -12, 12, 40, 1e-6, -1e-6]]).astype(np.float32)
UP = np.linspace(-2, 2, len(X)).astype(np.float32)


def arguments(name: str) -> list[np.ndarray]:
  return [X, UP] if DECLARED[name].gated else [X]


def oracle(name: str, *args: np.ndarray) -> np.ndarray:
  return reference.activation(name, *args)


def test_declarations_and_bodies_are_the_same_set():
  assert set(DECLARED) == set(activations.BODIES)


def test_an_oracle_is_as_gated_as_what_it_judges():
  assert {name for name in ORACLES if DECLARED[name].gated} == set(reference.GATED)


@pytest.mark.parametrize('name', NAMES)
def test_value(name):
  args = arguments(name)
  got = jax.jit(activations.BODIES[name])(*args)
  assert got.dtype == jnp.float32 and np.all(np.isfinite(got))
  np.testing.assert_allclose(got, oracle(name, *map(np.float64, args)), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize('name', ORACLES)
def test_a_wrong_value_would_be_seen(name):
  """Negative control: no other activation passes for this one."""
  args = [np.float64(a) for a in arguments(name)]
  for other in ORACLES:
    if other != name and DECLARED[other].gated == DECLARED[name].gated:
      assert np.max(np.abs(oracle(other, *args) - oracle(name, *args))) > 1e-3


@pytest.mark.parametrize('name', NAMES)
def test_gradient_against_finite_differences(name):
  """Central differences of the float64 oracle, away from the corner of relu at 0."""
  args = [a[np.abs(X) > 1e-3] for a in arguments(name)]
  for i in range(len(args)):
    total = lambda *a: jnp.sum(activations.BODIES[name](*a))  # noqa: E731
    got = jax.grad(total, argnums=i)(*map(jnp.asarray, args))
    high, low = ([np.float64(a) for a in args] for _ in range(2))
    high[i], low[i] = high[i] + 1e-5, low[i] - 1e-5
    expected = (oracle(name, *high) - oracle(name, *low)) / 2e-5
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', NAMES)
def test_gradient_is_finite_everywhere(name):
  args = arguments(name)
  args[0] = np.concatenate([args[0][:-3], np.float32([0.0, -1e4, 1e4])])
  total = lambda *a: jnp.sum(activations.BODIES[name](*a))  # noqa: E731
  for i in range(len(args)):
    assert np.all(np.isfinite(jax.grad(total, argnums=i)(*map(jnp.asarray, args))))


@pytest.mark.parametrize('name', NAMES)
def test_bfloat16(name):
  """Eight bits of mantissa: within 2^-7 of the largest number on the way."""
  args = [jnp.asarray(a, jnp.bfloat16) for a in arguments(name)]
  got = activations.BODIES[name](*args)
  exact = oracle(name, *(np.asarray(a, np.float64) for a in args))
  assert got.dtype == jnp.bfloat16
  size = np.maximum(1.0, np.abs(exact)) + np.abs(np.asarray(args[0], np.float64))
  assert np.all(np.abs(np.asarray(got, np.float64) - exact) <= 2.0**-7 * size)


@pytest.mark.parametrize('name', NAMES)
def test_second_call_compiles_nothing(name):
  compiled = jax.jit(jax.value_and_grad(lambda *a: jnp.sum(activations.BODIES[name](*a))))
  args = [jnp.asarray(a) for a in arguments(name)]
  compiled(*args)
  with battery.compilations() as seconds:
    compiled(*args)
  assert seconds == [] and compiled._cache_size() == 1


def test_gelu_is_the_exact_one():
  """x Φ(x) to float32's rounding of numbers near 1, far out as well; tanh's differs by 5e-4."""
  x = np.concatenate([np.linspace(-10, 10, 2001), [-1e4, -100, 100, 1e4]]).astype(np.float32)
  exact = np.float64(x) * stats.norm.cdf(np.float64(x))
  got = np.float64(activations.gelu(jnp.asarray(x)))
  np.testing.assert_allclose(got, exact, rtol=3e-7, atol=1e-6)
  tanh = np.float64(jax.nn.gelu(x, approximate=True))
  assert np.max(np.abs(tanh - exact)) > 4e-4  # negative control


def test_gradients_at_the_corner():
  assert float(jax.grad(activations.relu)(0.0)) == 0.0
  assert float(jax.grad(activations.relu2)(0.0)) == 0.0
  assert float(jax.grad(activations.gelu)(0.0)) == 0.5
  assert float(jax.grad(activations.silu)(0.0)) == 0.5
