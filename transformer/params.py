"""Parameters made from the one table in axes.py, each from its own key.

A key is folded from (seed, path, layer), so that two models agree bit for bit in every parameter
they have in common, whatever else differs, and however the model is laid over devices.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from transformer import axes, count
from transformer.config import Config


def initializer(path: str, branches: int = 0, factor: float = 1.0) -> Callable[..., jax.Array]:
  """The Linen initializer (key, shape, dtype) of a parameter path such as 'ffn/up'.

  branches: how many write into the residual stream that it writes to; 0: it is not scaled by them.
  factor: on the deviation besides.
  """
  rule = axes.param(path)

  def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    if rule.init != 'normal':
      return jnp.full(shape, rule.init, dtype)
    fan_in = prod(n for letter, n in zip(rule.letters, shape, strict=True) if letter in rule.fan_in)
    variance = 1 / fan_in
    if rule.residual and branches:
      variance /= branches
    return factor * variance**0.5 * jax.random.normal(key, shape, dtype)

  return init


def initialize(config: Config, key: jax.Array) -> dict:
  """The nested parameter tree of a resolved config, float32. Pure; may be jitted."""
  tree: dict = {}
  out = config.model.out_init
  factors = {'ffn/down': config.ffn.down_init, 'attention/out': out, 'cross_attention/out': out}
  groups = {group.name: group for group in count.groups(config)}
  for path, shape in count.shapes(config).items():
    owner, _, rest = path.partition('/')
    factor = factors.get('/'.join(path.split('/')[-2:]), 1.0)
    group = groups.get(owner)
    init = initializer(path, count.branches(config, group.stack if group else 'layers'), factor)
    if group:  # a layer's key does not tell how layers are grouped
      own = jax.random.fold_in(key, zlib.crc32(f'{group.stack}/{rest}'.encode()))
      layers = group.first + jnp.arange(group.size)
      keys = jax.vmap(lambda layer, own=own: jax.random.fold_in(own, layer))(layers)
      leaf = jax.vmap(lambda k, init=init, shape=shape: init(k, shape[1:]))(keys)
    else:
      leaf = init(jax.random.fold_in(key, zlib.crc32(path.encode())), shape)
    *owners, name = path.split('/')
    node = tree
    for owner in owners:
      node = node.setdefault(owner, {})
    node[name] = leaf
  return tree


def path_of(key_path: tuple) -> str:
  """'layers/ffn/up' from a JAX key path."""
  return jax.tree_util.keystr(key_path, simple=True, separator='/')


def decay_mask(params: dict) -> dict:
  """True where weight decay applies, for every leaf by exactly one rule of the table."""
  return jax.tree_util.tree_map_with_path(lambda p, _: axes.param(path_of(p)).decay, params)
