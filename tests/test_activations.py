"""Every declared activation has a body, and every body is right, smooth in use and steady."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests import battery, reference_ffn
from transformer import activations, axes, spec
from transformer.config import resolve
from transformer.errors import UserError

DECLARED = spec.variants('ffn.activation')
NAMES = sorted(activations.BODIES)
ORACLES = {**reference_ffn.PLAIN, **reference_ffn.GATED}
PAIRS = ['product(gelu, tanh)', 'product(leaky_relu(0.1), prelu)', 'product(on_up=relu)']
FAR = np.float32([-40, -30, -12, 12, 30, 40, 1e-3, -1e-3])
X = np.concatenate([np.linspace(-6, 6, 97)[np.arange(97) != 48], FAR]).astype(np.float32)  # no 0
UP = np.concatenate([np.linspace(-2, 2, len(X) - len(FAR)), FAR[::-1]]).astype(np.float32)


def cases(name: str) -> list[str]:
  """The ways in which one activation is tried: by default, arguments moved, pairs of others."""
  return battery.texts('ffn.activation', name) + (PAIRS if name == 'product' else [])


def inputs(text: str) -> list[np.ndarray]:
  return [X, UP][: len(spec.parse('ffn.activation', text).inputs)]


def leaves(text: str) -> dict[str, np.ndarray]:
  """Values of the parameters it owns, near those they begin at."""
  rng = np.random.default_rng(0)
  rules = spec.parse('ffn.activation', text).leaves
  begin = {name: 0.0 if rule.init == 'normal' else rule.init for name, rule in rules.items()}
  return {name: np.float32(x + 0.3 * rng.normal(size=len(X))) for name, x in begin.items()}


def run(text: str, x: list, own: dict) -> jax.Array:
  return activations.activate(spec.parse('ffn.activation', text), x, own)


@functools.cache
def compiled(text: str):
  """(inputs, own parameters) -> (values, their slopes by each input and each parameter)."""

  def both(x: list, own: dict) -> tuple:
    value, back = jax.vjp(functools.partial(run, text), x, own)
    return value, back(jnp.ones_like(value))

  return jax.jit(both)


def oracle(text: str, x: list, own: dict) -> np.ndarray:
  x, own = [np.float64(a) for a in x], {name: np.float64(leaf) for name, leaf in own.items()}
  return reference_ffn.activation(text, x, own)


def test_declarations_and_bodies_are_the_same_set():
  assert set(DECLARED) == set(activations.BODIES)


def test_every_shipped_activation_has_an_oracle_with_as_many_inputs():
  plain = {name for name, declared in DECLARED.items() if declared.inputs == ('up',)}
  shipped = {n for n, d in DECLARED.items() if d.__module__ == 'transformer.config.activations'}
  assert shipped == {*ORACLES, 'product'}
  assert plain & shipped == set(reference_ffn.PLAIN)


@pytest.mark.parametrize('name', NAMES)
def test_value(name):
  """On (−6, 6) and as far out as ±40."""
  for text in cases(name):
    args = inputs(text), leaves(text)
    got, _ = compiled(text)(*args)
    assert got.dtype == jnp.float32 and np.all(np.isfinite(got))
    np.testing.assert_allclose(got, oracle(text, *args), rtol=1e-5, atol=2e-6, err_msg=text)


@pytest.mark.parametrize('name', sorted(ORACLES))
def test_a_wrong_value_would_be_seen(name):
  """Negative control: no other activation passes for this one."""
  exact = oracle(name, inputs(name), leaves(name))
  for other in ORACLES:
    if other != name and DECLARED[other].inputs == DECLARED[name].inputs:
      wrong = oracle(other, inputs(other), leaves(other))
      assert np.max(np.abs(wrong - exact)) > 3e-4, other


@pytest.mark.parametrize('name', NAMES)
def test_gradient_against_finite_differences(name):
  """By inputs and by its own parameters: central differences of the oracle, away from corners."""
  for text in cases(name):
    x, own = inputs(text), leaves(text)
    _, (by_input, by_leaf) = compiled(text)(x, own)
    found = dict(enumerate(by_input)) | by_leaf
    for key, slope in found.items():
      ends = []
      for step in (1e-5, -1e-5):
        moved_x, moved = dict(enumerate(map(np.float64, x))), dict(own)
        where = moved if key in moved else moved_x
        where[key] = np.float64(where[key]) + step
        ends.append(oracle(text, list(moved_x.values()), moved))
      expected = (ends[0] - ends[1]) / 2e-5
      np.testing.assert_allclose(slope, expected, rtol=2e-4, atol=2e-5, err_msg=f'{text} by {key}')
      # a parameter that nothing depends on would pass
      assert key not in by_leaf or np.max(np.abs(expected)) > 0.1


@pytest.mark.parametrize('name', NAMES)
def test_gradient_is_finite_everywhere(name):
  """At 0, in its corner, and so far out that an exponential overflows."""
  for text in cases(name):
    x = inputs(text)
    x[0] = np.concatenate([x[0][:-3], np.float32([0.0, -1e4, 1e4])])
    value, slopes = compiled(text)(x, leaves(text))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((value, slopes))), text


@pytest.mark.parametrize('name', NAMES)
def test_bfloat16(name):
  """Eight bits of mantissa: within 2^-6 of the largest number on the way."""
  for text in cases(name):
    args = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), (inputs(text), leaves(text)))
    got, slopes = compiled(text)(*args)
    exact = oracle(text, *jax.tree.map(lambda a: np.asarray(a, np.float64), args))
    assert {leaf.dtype for leaf in jax.tree.leaves((got, slopes))} == {jnp.dtype('bfloat16')}
    size = np.maximum(1.0, np.abs(exact)) + np.abs(np.asarray(args[0][0], np.float64))
    assert np.all(np.abs(np.asarray(got, np.float64) - exact) <= 2.0**-6 * size), text


@pytest.mark.parametrize('name', NAMES)
def test_second_call_compiles_nothing(name):
  for text in cases(name):
    args = jax.tree.map(jnp.asarray, (inputs(text), leaves(text)))
    compiled(text)(*args)
    with battery.compilations() as seconds:
      compiled(text)(*args)
    assert seconds == [], text


def test_gelu_is_the_exact_one():
  """x Φ(x) to float32's rounding of numbers near 1, far out as well; tanh's differs by 5e-4."""
  x = np.concatenate([np.linspace(-10, 10, 2001), [-1e4, -100, 100, 1e4]]).astype(np.float32)
  exact = np.float64(x) * stats.norm.cdf(np.float64(x))
  got = np.float64(activations.gelu(jnp.asarray(x)))
  np.testing.assert_allclose(got, exact, rtol=3e-7, atol=1e-6)
  tanh = np.float64(activations.gelu_tanh(jnp.asarray(x)))
  assert np.max(np.abs(tanh - exact)) > 4e-4  # negative control


def test_gradients_at_the_corner():
  assert float(jax.grad(activations.relu)(0.0)) == 0.0
  assert float(jax.grad(activations.relu2)(0.0)) == 0.0
  assert float(jax.grad(activations.gelu)(0.0)) == 0.5
  assert float(jax.grad(activations.silu)(0.0)) == 0.5


@pytest.mark.parametrize(
  ('pair', 'single'),
  [
    ('product(gelu, identity)', 'geglu'),
    ('product', 'swiglu'),
    ('product(sigmoid)', 'glu'),
    ('product(relu)', 'reglu'),
    ('product(relu2)', 'relu2_glu'),
    ('product(identity)', 'bilinear'),
  ],
)
def test_a_gated_activation_is_a_product_bit_for_bit(pair, single):
  one, other = (compiled(text)([X, UP], {}) for text in (pair, single))
  assert battery.same_bits(one, other)
  swapped = compiled(pair)([UP, X], {})
  assert not battery.same_bits(swapped, other) or single == 'bilinear'  # negative control


@pytest.mark.exhaustive
@pytest.mark.parametrize('on_gate', sorted(reference_ffn.PLAIN))
def test_every_pair_of_plain_activations(on_gate):
  for on_up in reference_ffn.PLAIN:
    text = f'product({on_gate}, {on_up})'
    args = [X, UP], leaves(text)
    expected = oracle(text, *args)
    np.testing.assert_allclose(compiled(text)(*args)[0], expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
  ('text', 'names'),
  [
    ('prelu', {'prelu_slope'}),
    ('product(prelu, relu)', {'gate_prelu_slope'}),
    ('product(leaky_relu(0.1), prelu)', {'up_prelu_slope'}),
    ('product(prelu, prelu)', {'gate_prelu_slope', 'up_prelu_slope'}),
    ('swiglu', set()),
  ],
)
def test_names_of_its_own_parameters(text, names):
  """Beside up and down; each side of a product has its own, and each has one rule of the table."""
  found = spec.parse('ffn.activation', text).leaves
  assert set(found) == names
  for name, rule in found.items():
    assert axes.param(f'layers/ffn/{name}') is axes.param(f'ffn/middle_{name}') is rule
    assert (rule.letters, rule.init, rule.decay) == ('F', 0.25, False)


def test_the_text_of_a_product_is_its_shortest():
  config = resolve(
    battery.tiny().replace(**{'ffn.activation': 'product(silu(), leaky_relu(slope=.1))'})
  )
  assert config.ffn.activation == 'product(on_up=leaky_relu(slope=0.1))'


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('product(swiglu, relu)', 'product takes plain activations, not swiglu'),
    ('product(relu, product)', 'product takes plain activations, not product'),
    ('product(foo, silu)', "=foo: no variant 'foo'; choose from " + ', '.join(sorted(DECLARED))),
    ('product(silu, gelo)', "=gelo: no variant 'gelo'; did you mean gelu?"),
    ('product(leaky_relu(slop=1))', "=leaky_relu(slop=1): leaky_relu has no argument 'slop'; "
     'did you mean slope?'),
    ('product(relu(1))', '=relu(1): relu takes no argument(s), got 1'),
    ('product(1)', '=1: expected name or name(argument=value), with literal values'),
    ('product(silu, relu, gelu)', '=product(silu, relu, gelu): product takes 2 argument(s), got 3'),
  ],
)  # fmt: skip
def test_a_product_refuses(text, message):
  with pytest.raises(UserError) as e:
    spec.parse('ffn.activation', text)
  start = '--ffn.activation' if message.startswith('=') else '--ffn.activation: '
  assert str(e.value) == start + message
