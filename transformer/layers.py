"""What blocks are made of besides attention and FFN: norms, dropout, sharding of activations."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from transformer import axes, spec
from transformer.params import initializer


class Norm(nn.Module):
  """RMSNorm or LayerNorm over the last axis, computed in float32.

  kind: a variant of model.norm, such as 'rmsnorm' or 'layernorm(epsilon=1e-05)'.
  """

  kind: str = 'rmsnorm'

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    variant = spec.parse('model.norm', self.kind)
    width = x_BTD.shape[-1:]
    scale_D = self.param('scale', initializer('norm/scale'), width)
    x = x_BTD.astype(jnp.float32)
    if variant.variant == 'layernorm':
      x = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(variance + variant.epsilon) * scale_D
    if variant.bias:
      x = x + self.param('bias', initializer('norm/bias'), width)
    return x.astype(x_BTD.dtype)


def dropout(x: jax.Array, noise_B: jax.Array | None, rate: float, site: int) -> jax.Array:
  """Zeroes entries with probability `rate` and scales the rest by 1/(1 − rate).

  noise_B: a key per row of the batch, or None to evaluate. `site` tells apart the dropouts of one
  layer. Keys belong to rows, so the same entries drop however rows are spread over devices.
  """
  if noise_B is None or rate == 0.0:
    return x

  def keep(key: jax.Array) -> jax.Array:
    return jax.random.bernoulli(jax.random.fold_in(key, site), 1.0 - rate, x.shape[1:])

  return jnp.where(jax.vmap(keep)(noise_B), x / (1.0 - rate), 0.0).astype(x.dtype)


def shard(x: jax.Array, letters: str) -> jax.Array:
  """Lays an activation over the current mesh by the letter table; without one, does nothing."""
  mesh = jax.sharding.get_abstract_mesh()
  ours = {name: mesh.shape[name] for name in mesh.axis_names if name in axes.MESH_AXES}
  if not ours:
    return x
  return jax.lax.with_sharding_constraint(
    x, PartitionSpec(*axes.partition(letters, x.shape, ours, parameter=False))
  )
