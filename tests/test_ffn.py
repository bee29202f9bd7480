"""The feed-forward network: right at every position, and at every position on its own."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import battery, reference_ffn
from transformer import spec
from transformer.activations import BODIES
from transformer.attention import Attention
from transformer.config import setting
from transformer.config.activations import Plain
from transformer.ffn import FFN, Aux
from transformer.ops.product import product

ACTIVATIONS = list(spec.variants('ffn.activation'))
OWN = 'product(leaky_relu(0.1), prelu)'
B, T, D, F = 2, 5, 6, 7
X = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
DEEP = {'bias': True, 'hidden_layers': 2}


def names(activation: str, bias: bool = False, hidden_layers: int = 1) -> set[str]:
  """The parameters it should have."""
  variant = spec.parse('ffn.activation', activation)
  stages = ['', 'middle_'][:hidden_layers]
  matrices = [f'{stage}{name}' for stage in stages for name in variant.inputs] + ['down']
  own = [f'{stage}{leaf}' for stage in stages for leaf in variant.leaves]
  return {*matrices, *own, *(f'{name}_bias' for name in matrices if bias)}


def make(activation: str, **shape) -> tuple[FFN, dict]:
  """A network and weights that leave nothing at 0."""
  ffn, rng = FFN(F, activation, **shape), np.random.default_rng(3)
  tree = jax.eval_shape(lambda: ffn.init(jax.random.key(0), jnp.asarray(X)))['params']
  assert set(tree) == names(activation, **shape)
  return ffn, {
    name: (rng.normal(size=leaf.shape) / leaf.shape[0] ** 0.5).astype(np.float32)
    for name, leaf in sorted(tree.items())
  }


@functools.cache
def compiled(ffn: FFN):
  """(weights, x, c) -> y, and the gradients of Σ c·y by weights and x."""

  def both(weights: dict, x: jax.Array, c: jax.Array) -> tuple:
    y, back = jax.vjp(lambda w, x: ffn.apply({'params': w}, x)[0], weights, x)
    return y, back(c)

  return jax.jit(both)


def apply(ffn: FFN, weights: dict, x: np.ndarray = X) -> np.ndarray:
  return np.asarray(compiled(ffn)(weights, x, X)[0])


def oracle(weights: dict, activation: str, x: np.ndarray = X) -> np.ndarray:
  weights = {name: np.float64(leaf) for name, leaf in weights.items()}
  return np.stack([reference_ffn.ffn(weights, activation, np.float64(row)) for row in x])


def check(activation: str, **shape) -> None:
  ffn, weights = make(activation, **shape)
  expected = oracle(weights, activation)
  got = apply(ffn, weights)
  size = max(1.0, np.max(np.abs(expected)))
  np.testing.assert_allclose(got, expected, atol=1e-5 * size)
  for name in weights:  # negative control: every weight matters
    moved = apply(ffn, weights | {name: weights[name] + np.float32(0.5)})
    assert np.max(np.abs(moved - expected)) > 1e-3 * size, name
  for t in range(T):  # positions do not meet: another x_t changes y_t and, to the bit, no other
    other = X.copy()
    other[:, t] += 1
    moved = np.any(got != apply(ffn, weights, other), axis=-1)
    assert np.array_equal(moved, np.broadcast_to(np.arange(T) == t, (B, T)))


@pytest.mark.parametrize('activation', [*ACTIVATIONS, OWN])
def test_against_loops_over_positions(activation):
  check(activation)


@pytest.mark.parametrize('activation', [*ACTIVATIONS, OWN])
def test_three_layers_with_biases_against_loops_over_positions(activation):
  check(activation, **DEEP)


@pytest.mark.parametrize('shape', [{'bias': True}, {'hidden_layers': 2}], ids=str)
@pytest.mark.parametrize('activation', ['silu', OWN])
def test_biases_and_three_layers_one_without_the_other(activation, shape):
  check(activation, **shape)


def test_position_wise_means_position_wise():
  """∂y_t/∂x_s is 0 for s ≠ t, and permuted positions permute what comes out.

  Attention, the control, mixes positions: of its Jacobian no block is 0. Without a mask and without
  positions it, too, has no order.
  """
  network, weights = make('swiglu', **DEEP)
  mixer = Attention(2, 4)
  seen = jnp.ones((1, T, T), bool)
  own = mixer.init(jax.random.key(0), jnp.asarray(X[:1]), seen)['params']
  causal = jnp.tril(seen)
  order = np.array([3, 0, 4, 1, 2])
  for function, alone, ordered in (
    (lambda x_TD: network.apply({'params': weights}, x_TD[None])[0][0], True, False),
    (lambda x_TD: mixer.apply({'params': own}, x_TD[None], seen)[0], False, False),
    (lambda x_TD: mixer.apply({'params': own}, x_TD[None], causal)[0], None, True),
  ):
    both = jax.jit(lambda x_TD, f=function: (f(x_TD), jax.jacobian(f)(x_TD)))
    y_TD, slope_TDTD = jax.device_get(both(X[0]))
    size_TT = np.max(np.abs(slope_TDTD), axis=(1, 3))
    expected = {True: np.eye(T), False: np.ones((T, T)), None: np.tril(np.ones((T, T)))}[alone]
    assert np.array_equal(size_TT > 0, expected.astype(bool))
    permuted = np.max(np.abs(both(X[0][order])[0] - y_TD[order]))
    assert (permuted > 0.01) == ordered and (ordered or permuted < 1e-5)


def test_returns_an_empty_aux():
  ffn, weights = make('gelu')
  assert ffn.apply({'params': weights}, X)[1] == Aux({}, {})


@pytest.mark.parametrize('activation', [*ACTIVATIONS, OWN])
def test_gradient_against_finite_differences(activation):
  """Of a random projection of the output, along a random direction of each weight and of x."""
  ffn, weights = make(activation, **DEEP)
  rng = np.random.default_rng(2)
  c = rng.normal(size=X.shape).astype(np.float32)
  _, (grads, by_x) = compiled(ffn)(weights, X, c)
  for name, grad in [*grads.items(), ('x', by_x)]:
    ends, direction = [], rng.normal(size=grad.shape)
    for step in (1e-6, -1e-6):
      tree = {'x': X} | weights
      tree[name] = np.float64(tree[name]) + step * direction
      ends.append(np.sum(oracle(tree, activation, tree['x']) * c))
    expected = (ends[0] - ends[1]) / 2e-6
    assert np.sum(grad * direction) == pytest.approx(expected, rel=1e-3, abs=1e-4), name
    assert abs(expected) > 1e-3, name  # there was a slope to compare


@pytest.mark.parametrize('activation', [*ACTIVATIONS, OWN])
def test_bfloat16_computes_in_bfloat16_from_float32_weights(activation):
  ffn, weights = make(activation, **DEEP)
  got, _ = ffn.apply({'params': weights}, jnp.asarray(X, jnp.bfloat16))
  assert got.dtype == jnp.bfloat16
  expected = oracle(weights, activation)
  np.testing.assert_allclose(
    np.asarray(got, np.float64), expected, atol=0.04 * np.max(np.abs(expected))
  )


@pytest.mark.parametrize(
  ('hidden_layers', 'products'),
  [
    (1, ['btd,df->btf', 'btd,df->btf', 'btf,fd->btd']),
    (2, ['btd,df->btf', 'btd,df->btf', 'btf,fm->btm', 'btf,fm->btm', 'btf,fd->btd']),
  ],
)
def test_the_product_is_the_one_received(hidden_layers, products):
  """A dense layer and experts share this code by the product they hand in."""
  calls = []

  def noted(dims, x, w):
    calls.append(dims)
    return product(dims, x, w)

  ffn, weights = make('swiglu', hidden_layers=hidden_layers)
  other = FFN(F, 'swiglu', hidden_layers=hidden_layers, product=noted)
  got = apply(other, weights)
  assert calls == products
  assert np.array_equal(got, apply(ffn, weights))


def test_second_call_compiles_nothing():
  ffn, weights = make('geglu')
  apply(ffn, weights)
  with battery.compilations() as seconds:
    apply(ffn, weights, 2 * X)
  assert seconds == []


def keys(rows: list[int]) -> jax.Array:
  return jax.vmap(lambda r: jax.random.fold_in(jax.random.key(0), r))(jnp.asarray(rows))


class TestDropout:
  """Of the hidden layer: seen through a `down` that is the identity, and `up` of ones."""

  rate, width = 0.25, 64
  x = jnp.ones((4, 32, 64))
  weights: dict = {'up': jnp.eye(64), 'down': jnp.eye(64)}  # noqa: RUF012
  ffn = FFN(64, 'relu', dropout=0.25)

  def hidden(self, rows: list[int], x: jax.Array | None = None) -> np.ndarray:
    x = self.x if x is None else x
    return np.asarray(self.ffn.apply({'params': self.weights}, x, keys(rows))[0])

  def test_share_and_scale(self):
    h = self.hidden([0, 1, 2, 3])
    np.testing.assert_allclose(np.unique(h), [0, 1 / (1 - self.rate)], rtol=1e-6)
    # 8192 draws: a deviation of the share is √(.25 · .75 / 8192) = .005
    assert np.mean(h == 0) == pytest.approx(self.rate, abs=0.02)
    assert len({row.tobytes() for row in h}) == 4

  def test_noise_belongs_to_the_row(self):
    h = self.hidden([0, 1, 2, 3])
    assert np.array_equal(self.hidden([3, 1], self.x[:2]), h[[3, 1]])  # wherever the row lies

  def test_evaluation_drops_nothing(self):
    y, _ = self.ffn.apply({'params': self.weights}, self.x)
    assert np.array_equal(y, self.x)

  def test_it_is_not_the_noise_of_a_branch(self):
    """Sites 0 and 1 of a layer's keys are its residual branches', 2 is this one."""
    from transformer.layers import dropout

    h = self.hidden([0, 1, 2, 3])
    same = [np.array_equal(h, dropout(self.x, keys([0, 1, 2, 3]), 0.25, s)) for s in range(5)]
    assert same == [False, False, True, False, False]


@pytest.mark.parametrize('factor', [0.0, 0.5, 3.0])
def test_down_begins_at_its_factor(factor):
  """Deviation factor · 1/√F / √(2 · layers); 0: y is 0, and yet `down` learns."""
  make_one = functools.partial(FFN, 64, branches=16)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 64)), jnp.float32)
  ffn, one = make_one(down_init=factor), make_one()
  weights, usual = (f.init(jax.random.key(0), x)['params'] for f in (ffn, one))
  for name in weights:  # the rest begins where it would
    scale = factor if name == 'down' else 1.0
    np.testing.assert_allclose(weights[name], scale * usual[name], rtol=1e-6, err_msg=name)
  # 4096 draws: an estimated deviation is off by 1/√8192 = 1.1 %, four of these are 4.5 %
  assert np.std(weights['down']) == pytest.approx(factor / 8 / 4, rel=0.045)
  y, back = jax.vjp(lambda w: ffn.apply({'params': w}, x)[0], weights)
  assert np.any(y) == (factor > 0)
  grads = back(x)[0]
  assert np.all(np.any(grads['down'], axis=0))
  assert np.any(grads['up']) == (factor > 0)


def test_arguments_and_parameters_of_an_activation_reach_its_body(monkeypatch):
  from transformer import axes

  monkeypatch.setitem(spec._DECLARED, 'ffn.activation', dict(spec.variants('ffn.activation')))
  monkeypatch.setattr(axes, 'PARAMS', dict(axes.PARAMS))

  @spec.declare('ffn.activation', 'scaled')
  class Scaled(Plain):
    """slope · x + offset."""

    slope: float = setting(1.0, 'factor')
    parameters = {'offset': axes.Param('F', init=0.5, decay=False)}  # noqa: RUF012

  monkeypatch.setitem(BODIES, 'scaled', lambda x, slope, offset: slope * x + offset)
  weights = FFN(F, 'scaled', hidden_layers=2).init(jax.random.key(0), X)['params']
  assert set(weights) == {'up', 'middle_up', 'down', 'scaled_offset', 'middle_scaled_offset'}
  assert np.all(weights['scaled_offset'] == 0.5)
  for text in ('scaled', 'scaled(slope=3)'):  # against the fallback of the oracle: its own body
    got = FFN(F, text, hidden_layers=2).apply({'params': weights}, X)[0]
    np.testing.assert_allclose(got, oracle(weights, text), atol=1e-5)
  assert np.max(np.abs(oracle(weights, 'scaled') - oracle(weights, 'scaled(slope=3)'))) > 0.1
