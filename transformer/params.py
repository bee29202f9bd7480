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
    # Of a tensor stacked along experts the shape may be one of them.
    named = zip(reversed(rule.letters), reversed(shape), strict=False)
    fan_in = prod(n for letter, n in named if letter in rule.fan_in)
    variance = 1 / fan_in
    if rule.residual and branches:
      variance /= branches
    return factor * variance**0.5 * jax.random.normal(key, shape, dtype)

  return init


def initialize(config: Config, key: jax.Array) -> dict:
  """The nested parameter tree of a resolved config, float32. Pure; may be jitted."""
  return _tree(config, key, count.shapes(config))


def initialize_kept(config: Config, key: jax.Array) -> dict:
  """The tree of what routers keep (count.kept), made of the same keys: {} where there is none."""
  return _tree(config, key, count.kept(config))


def variables(config: Config, key: jax.Array) -> dict:
  """Both: what a model is applied to."""
  return merge(initialize(config, key), initialize_kept(config, key))


def merge(tree: dict, other: dict) -> dict:
  """A nested dictionary with the leaves of both; those of `other` where both have one."""
  nodes = {
    k: merge(tree[k], v) if isinstance(v, dict) and k in tree else v for k, v in other.items()
  }
  return {**tree, **nodes}


def like(tree: dict, shape: dict) -> dict:
  """Those leaves of a nested dictionary that another one has, too."""
  return {k: like(tree[k], v) if isinstance(v, dict) else tree[k] for k, v in shape.items()}


def _tree(config: Config, key: jax.Array, shapes: dict[str, tuple[int, ...]]) -> dict:
  tree: dict = {}
  out, down = config.model.out_init, config.ffn.down_init
  factors = dict.fromkeys(('attention/out', 'cross_attention/out'), out)
  factors |= dict.fromkeys(('ffn/down', 'experts/down', 'shared/down'), down)
  groups = {group.name: group for group in count.groups(config)}
  for path, shape in shapes.items():
    owner, _, rest = path.partition('/')
    factor = factors.get('/'.join(path.split('/')[-2:]), 1.0)
    group = groups.get(owner)
    init = initializer(path, count.branches(config, group.stack if group else 'layers'), factor)
    if group:  # a layer's key does not tell how layers are grouped
      own = jax.random.fold_in(key, zlib.crc32(f'{group.stack}/{rest}'.encode()))
      leaf = _each(init, own, shape, group.first, len(axes.stack_of(path)))
    else:
      leaf = init(jax.random.fold_in(key, zlib.crc32(path.encode())), shape)
    *owners, name = path.split('/')
    node = tree
    for owner in owners:
      node = node.setdefault(owner, {})
    node[name] = leaf
  return tree


def _each(
  init: Callable, key: jax.Array, shape: tuple[int, ...], first: int, stacked: int
) -> jax.Array:
  """An array whose entries along each of its `stacked` leading axes have keys of their own.

  Keys are folded with the layer's number, counted from `first`, then with the expert's.
  """
  if not stacked:
    return init(key, shape)
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(shape[0]))
  return jax.vmap(lambda k: _each(init, k, shape[1:], 0, stacked - 1))(keys)


def path_of(key_path: tuple) -> str:
  """'layers/ffn/up' from a JAX key path."""
  return jax.tree_util.keystr(key_path, simple=True, separator='/')


def decay_mask(params: dict) -> dict:
  """True where weight decay applies, for every leaf by exactly one rule of the table."""
  return jax.tree_util.tree_map_with_path(lambda p, _: axes.param(path_of(p)).decay, params)
