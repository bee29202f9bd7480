"""A layer of experts beside its oracle: what test files share that compare the two."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import battery, reference_moe
from transformer import axes, count
from transformer.config import Config
from transformer.moe import MoE

B, T, D, F, E = 2, 8, 6, 5, 4
_RNG = np.random.default_rng(0)
# Entries that bfloat16 has, too, so that both types choose the same experts.
X = np.asarray(jnp.asarray(_RNG.normal(size=(B, T, D)), jnp.bfloat16), np.float32)
IDS = np.array([[5, -1, -1, 3, 0, 2, -1, 3], [1, 2, 3, 4, 5, 6, 7, 8]], np.int32)
THERE = IDS >= 0
SLOPE = _RNG.normal(size=X.shape).astype(np.float32)  # of the objective by y
LOSS_SLOPE_B = np.array([0.7, -1.3], np.float32)  # and by the losses of rows


def config_of(router: str, dispatch: str = 'auto', **changes: object) -> Config:
  """A resolved config of one layer of four experts, five units wide."""
  own = {
    'moe.experts': E,
    'moe.router': router,
    'moe.dispatch': dispatch,
    'moe.allow_noncausal': True,
    'model.num_layers': 1,
    'model.num_heads': 1,
    'model.d_model': D,
    'ffn.d_ff': F,
    'data.seq_len': T,
  }
  if dispatch.startswith('expert_parallel'):
    own['parallel.mesh'] = 'expert:1'
  return battery.tiny(**own | changes)


def layer_of(config: Config) -> MoE:
  """The first layer of experts of a config."""
  group = next(g for g in count.groups(config) if g.experts)
  return MoE(config, group)


@functools.cache
def weights_of(config: Config, seed: int = 1) -> dict:
  """Weights of one layer that leave nothing at 0, with what its router keeps."""
  rng, tree = np.random.default_rng(seed), {}
  prefix = f'{layer_of(config).group.name}/ffn/'
  for path, (_, *shape) in (count.shapes(config) | count.kept(config)).items():
    if path.startswith(prefix):
      *owners, leaf = path.removeprefix(prefix).split('/')
      size = len(axes.param(path).fan_in) and shape[-2]
      value = rng.normal(size=shape) / max(1, size) ** 0.5
      if leaf == 'router_bias':
        value *= 0.3  # of the size of what scores differ by
      if leaf == 'router_table':
        value = rng.integers(0, E, shape)
      node = functools.reduce(lambda node, name: node.setdefault(name, {}), owners, tree)
      node[leaf] = value.astype(np.float32)
  return tree


@functools.cache
def compiled(config: Config):
  """(weights, x, ids, losses, noise_B) -> y, Aux, and the gradients by weights and x.

  They are of `objective`, its losses times `losses`.
  """

  def of_all(weights: dict, x: jax.Array, ids: jax.Array, losses: float, *noise_B: jax.Array):
    y, aux = layer_of(config).apply({'params': weights}, x, ids, jnp.int32(0), *noise_B)
    of_rows = sum((jnp.sum(LOSS_SLOPE_B * loss) for loss in aux.losses.values()), 0.0)
    return jnp.sum(SLOPE * y) + losses * of_rows, (y, aux)

  def both(*args: jax.Array) -> tuple:
    grads, (y, aux) = jax.grad(of_all, argnums=(0, 1), has_aux=True)(*args)
    return y, aux, grads

  return jax.jit(both)


def run(config: Config, weights: dict | None = None, *noise_B, x=X, ids=IDS, losses=1.0) -> tuple:
  """What `compiled` gives, on the host."""
  weights = weights_of(config) if weights is None else weights
  return jax.device_get(compiled(config)(weights, x, ids, losses, *noise_B))


def oracle(
  config: Config, weights: dict | None = None, *, x=X, ids=IDS, training=False
) -> reference_moe.Layer:
  """The same of the oracle, in float64."""
  weights = jax.tree.map(np.float64, weights_of(config) if weights is None else weights)
  return reference_moe.moe(config, weights, np.float64(x), ids, training=training)


def objective(found: reference_moe.Layer) -> float:
  """What `compiled` takes the gradient of."""
  losses = sum(np.sum(LOSS_SLOPE_B * loss) for loss in found.losses.values())
  return float(np.sum(SLOPE * found.y_BTD) + losses)


def check_value(expected: reference_moe.Layer, got: tuple) -> None:
  """Output, losses and sums of a run against the oracle's."""
  y, aux, _ = got
  size = max(1.0, np.max(np.abs(expected.y_BTD)))
  np.testing.assert_allclose(y, expected.y_BTD, atol=2e-5 * size)
  assert aux.losses.keys() == expected.losses.keys()
  for name, loss_B in expected.losses.items():
    np.testing.assert_allclose(aux.losses[name], loss_B, rtol=1e-5, err_msg=name)
  for name, total in aux.metrics.items():
    np.testing.assert_allclose(total, expected.sums[name], rtol=1e-5, atol=1e-6, err_msg=name)


def check_gradient(config: Config, got: tuple) -> None:
  """Along a random direction of each weight and of x, against finite differences of the oracle."""
  (grads, by_x), rng = got[2], np.random.default_rng(2)
  for path, grad in [*battery.flat(grads).items(), ('x', by_x)]:
    if path in ('router_bias', 'router_table'):  # they act on the choice alone
      assert not np.any(grad)
      continue
    direction = rng.normal(size=grad.shape)
    ends = [_moved(config, path, step * direction) for step in (1e-6, -1e-6)]
    assert _who(ends[0]) == _who(ends[1])  # no difference over a jump
    expected = (objective(ends[0]) - objective(ends[1])) / 2e-6
    assert np.sum(grad * direction) == pytest.approx(expected, rel=1e-3, abs=1e-4), path
    assert abs(expected) > 1e-3, path  # there was a slope to compare


def disturbed(weights: dict, path: str) -> dict:
  """A copy in which one leaf is another."""
  if path in ('router_bias', 'router_table'):  # by expert, by id
    return battery.changed(weights, path, lambda leaf: np.roll(leaf, 1))
  return battery.stir(weights, path)


def _moved(config: Config, path: str, by: np.ndarray) -> reference_moe.Layer:
  if path == 'x':
    return oracle(config, x=X + by)
  return oracle(config, battery.changed(weights_of(config), path, lambda leaf: leaf + by))


def _who(found: reference_moe.Layer) -> list:
  return [[choice[:3] for choice in group] for group in found.choices]
