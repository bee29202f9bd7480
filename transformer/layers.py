"""What blocks are made of besides attention and FFN: norms, dropout, sharding of activations."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from transformer import axes, spec
from transformer.ops.backend import mesh_axes
from transformer.params import initializer


class Norm(nn.Module):
  """RMSNorm, LayerNorm or nothing over the last axis, computed in float32.

  kind: a variant of model.norm, such as 'rmsnorm' or 'layernorm(epsilon=1e-05)'.
  """

  kind: str = 'rmsnorm'
  path: str = 'norm/scale'  # of its scale in the parameter table

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    variant = spec.parse('model.norm', self.kind)
    if variant.variant == 'none':
      return x_BTD
    width = x_BTD.shape[-1:]
    scale_D = self.param('scale', initializer(self.path), width)
    x = x_BTD.astype(jnp.float32)
    if variant.variant == 'layernorm':
      x = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(variance + variant.epsilon) * scale_D
    if 'bias' in variant.leaves:
      x = x + self.param('bias', initializer('norm/bias'), width)
    return x.astype(x_BTD.dtype)


def dropout(x: jax.Array, noise_B: jax.Array | None, rate: float, site: int) -> jax.Array:
  """Zeroes entries with probability `rate` and scales the rest by 1/(1 − rate).

  noise_B: a key per row of the batch, or None to evaluate. `site` tells apart the dropouts of one
  layer. Keys belong to rows, so the same entries drop however rows are spread over devices.
  """
  if noise_B is None or rate == 0.0:
    return x
  return dropped(x, kept(noise_B, rate, site, x.shape[1:]), rate)


def kept(noise_B: jax.Array, rate: float, site: int, shape: tuple[int, ...]) -> jax.Array:
  """Which entries (B, *shape) a dropout keeps."""

  def of_row(key: jax.Array) -> jax.Array:
    return jax.random.bernoulli(jax.random.fold_in(key, site), 1.0 - rate, shape)

  return jax.vmap(of_row)(noise_B)


def dropped(x: jax.Array, kept: jax.Array, rate: float) -> jax.Array:
  """x with entries that are not kept at 0, and the rest scaled by 1/(1 − rate)."""
  return jnp.where(kept, x / (1.0 - rate), 0.0).astype(x.dtype)


def drop_branch(y: jax.Array, noise_B: jax.Array | None, rate: jax.Array, site: int) -> jax.Array:
  """Stochastic depth: a row's whole branch is zeroed with probability `rate` (Huang et al. 2016).

  Kept rows are scaled by 1/(1 − rate); `rate` may be traced.
  """
  if noise_B is None:
    return y

  def keep(key: jax.Array) -> jax.Array:
    return jax.random.bernoulli(jax.random.fold_in(key, site), 1.0 - rate)

  scale_B = jax.vmap(keep)(noise_B) / (1.0 - rate)
  return y * scale_B.astype(y.dtype).reshape(-1, *[1] * (y.ndim - 1))


def fold(noise_B: jax.Array | None, data: int | jax.Array) -> jax.Array | None:
  """Each row's key folded with a number; None where there is no noise."""
  if noise_B is None:
    return None
  return jax.vmap(lambda key: jax.random.fold_in(key, data))(noise_B)


def observe(module: nn.Module, name: str, x: jax.Array) -> None:
  """Notes the size of a tensor if the caller of `apply` made the collection 'observed' mutable.

  Under `name`: sum_squares, sum_abs, largest (all of |x|), count, and finite.
  """
  if not module.is_mutable_collection('observed') or module.is_initializing():
    return
  x = jax.lax.stop_gradient(x).astype(jnp.float32)
  size = jnp.abs(x)
  found = {
    'sum_squares': jnp.sum(jnp.square(x)),
    'sum_abs': jnp.sum(size),
    'largest': jnp.max(size),
    'count': jnp.float32(x.size),
    'finite': jnp.all(jnp.isfinite(x)),
  }
  keep(module, 'observed', name, found)


def keep(module: nn.Module, collection: str, name: str, value: object) -> None:
  """Puts a value into a collection that the caller of `apply` asked for; else does nothing."""
  if module.is_mutable_collection(collection) and not module.is_initializing():
    module.sow(collection, name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None)


# Names under which the model observes tensors, in the order of the forward pass (see `order_name`);
# under --model.norm_placement=post, what is normed stands right before its stream.
_INSIDE = ('query', 'key', 'value', 'scores', 'mixed', 'out')
_CROSS = 'cross_attention'
ORDER = (
  *('source_embedding', 'encoder_normed', 'embedding', 'block_normed', 'attention_normed'),
  *(*_INSIDE, 'attention_out_normed', 'stream_attention', f'{_CROSS}_normed'),
  *(*(f'{_CROSS}/{name}' for name in _INSIDE), f'{_CROSS}_out_normed', f'stream_{_CROSS}'),
  *('ffn_normed', 'gate', 'up', 'hidden', 'middle_gate', 'middle_up', 'middle_hidden', 'down'),
  *('ffn_out_normed', 'stream_ffn', 'stream_block', 'final_normed', 'logits'),
)


def order_name(path: str) -> str:
  """The name in ORDER of an observed tensor such as 'layers/attention/query'."""
  owner, _, leaf = path.rpartition('/')
  return f'{_CROSS}/{leaf}' if owner.rpartition('/')[2] == _CROSS else leaf


def shard(x: jax.Array, letters: str) -> jax.Array:
  """Lays an activation over the current mesh by the letter table; without one, does nothing."""
  ours = mesh_axes()
  if not ours:
    return x
  return jax.lax.with_sharding_constraint(
    x, PartitionSpec(*axes.partition(letters, x.shape, ours, parameter=False))
  )


def shares(groups: int) -> int:
  """How many devices of the current mesh share out so many routing groups, or rows of a batch."""
  (parts,) = axes.partition('G', (groups,), mesh_axes(), parameter=False)
  return math.prod(mesh_axes()[axis] for axis in parts or ())
