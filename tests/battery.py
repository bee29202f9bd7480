"""What tests share: tiny configs and batches, counters of FLOPs and compilations, comparisons."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import numpy as np

from transformer import axes, count, spec
from transformer.config import Config, resolve
from transformer.ops import backend

TINY = {
  'model.d_model': 16,
  'model.num_layers': 2,
  'model.num_heads': 2,
  'model.vocab_size': 32,
  'ffn.d_ff': 24,
  'data.source': 'synthetic',
  'data.seq_len': 8,
  'data.batch_size': 8,
  'train.steps': 8,
  'parallel.mesh': 'data:1',
}


def tiny(**changes: object) -> Config:
  """A resolved config that compiles and runs in about a second; `changes` by flag name."""
  return resolve(Config().replace(**TINY | changes))


def moved(declaration: type) -> Any:
  """An instance of a variant with no argument at its default."""
  return declaration(**{f.name: _another(f) for f in dataclasses.fields(declaration)})


def _another(field: dataclasses.Field) -> Any:
  """A value of an argument that is within its range and not its default."""
  if field.metadata.get('colon'):
    return 'a b/**: (x) "y"'
  if field.metadata.get('slot'):
    return 'prelu'  # it has a parameter, and product takes it
  if field.type == 'bool':
    return not field.default
  if choices := field.metadata.get('choices'):
    return next(c for c in choices if c != field.default)
  high = field.metadata.get('high')
  return field.default + 1 if high is None else type(field.default)((field.default or high) / 2)


def texts(slot: str, name: str) -> list[str]:
  """A variant as it is by default and, if it has arguments, with all of them moved."""
  declaration = spec.variants(slot)[name]
  return list(dict.fromkeys([name, spec.canonical(moved(declaration))]))


def tokens(config: Config, seed: int = 0, padding: bool = False) -> np.ndarray:
  """A batch (B, T+1) of random ids with document starts (0) in it.

  padding: a row cut short, one with a single target and, as at the end of a held-out set, rows of
  nothing but −1 at the end: devices and micro-batches then hold very different numbers of targets.
  """
  rng = np.random.default_rng(seed)
  rows, length = config.data.batch_size, config.data.seq_len
  batch = rng.integers(0, config.model.vocab_size, (rows, length + 1)).astype(np.int32)
  batch[:, length // 2] = 0
  if padding:
    batch[1, length // 2 :] = -1
    batch[2, 2:] = -1
    batch[-(rows // 4) :] = -1
  return batch


def rows(config: Config, seed: int = 0, padding: bool = False) -> np.ndarray:
  """What a batch of the architecture is made of: `tokens`, of an encoder_decoder pairs.

  Pairs are (B, S+T+1): a source and a target that 0 opens and closes, both of all lengths, filled
  up with −1. padding: as of `tokens`.
  """
  if config.model.architecture != 'encoder_decoder':
    return tokens(config, seed, padding)
  rng, source_len = np.random.default_rng(seed), config.data.source_len
  shape = config.data.batch_size, source_len + config.data.seq_len + 1
  pairs = rng.integers(1, config.model.vocab_size, shape).astype(np.int32)
  source, target = pairs[:, :source_len], pairs[:, source_len:]
  for side, least in ((source, 1), (target, 2)):
    ends = rng.integers(least, side.shape[1] + 1, len(side))
    side[np.arange(side.shape[1]) >= ends[:, None]] = -1
    if side is target:
      target[np.arange(len(target)), ends - 1] = target[:, 0] = 0
  if padding:
    target[1, 2:] = -1
    pairs[-(len(pairs) // 4) :] = -1
  return pairs


def weights(config: Config) -> dict:
  """A nested tree of parameters near those a run begins at, with nothing at 0 or 1.

  What routers keep is among them.

  Drawn by NumPy: to initialise a model takes longer to compile than to run it.
  """
  rng, tree = np.random.default_rng(0), {}
  for path, shape in (count.shapes(config) | count.kept(config)).items():
    rule, letters = axes.param(path), axes.letters(path)
    fan_in = prod(n for c, n in zip(letters, shape, strict=True) if c in rule.fan_in)
    begin, size = (0.0, fan_in**-0.5) if rule.init == 'normal' else (rule.init, 0.2)
    if rule.residual and config.model.norm == 'none':  # else gated branches run away
      size /= count.branches(config, count.stacks(config)[-1]) ** 0.5
    *owners, leaf = path.split('/')
    node = functools.reduce(lambda node, name: node.setdefault(name, {}), owners, tree)
    node[leaf] = np.float32(begin + size * rng.normal(size=shape))
  return tree


def jiggle(tree: Any, scale: float = 0.3, seed: int = 0) -> Any:
  """A copy of a tree of arrays plus noise, so that scales of 1 and biases of 0 get to matter."""
  import jax

  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: np.asarray(x) + scale * rng.normal(size=x.shape).astype(np.float32), tree
  )


def flat(tree: Any) -> dict[str, np.ndarray]:
  """Path -> leaf, as NumPy arrays."""
  import jax

  from transformer.params import path_of

  found = jax.tree_util.tree_flatten_with_path(jax.device_get(tree))[0]
  return {path_of(path): leaf for path, leaf in found}


def poke(tree: Any, path: str, amount: float = 0.5) -> Any:
  """A copy of a nested dictionary of arrays in which the first entry of one leaf is moved."""

  def first(leaf: np.ndarray) -> np.ndarray:
    leaf.flat[0] += amount
    return leaf

  return changed(tree, path, first)


def stir(tree: Any, path: str) -> Any:
  """A copy in which noise is added to one leaf: no unit of a relu that is dead hides it."""
  return changed(tree, path, lambda leaf: jiggle(leaf, scale=0.5, seed=1))  # 0 drew `weights`


def changed(tree: Any, path: str, change: Callable[[np.ndarray], np.ndarray]) -> Any:
  """A copy of a nested dictionary of arrays in which one leaf is what `change` makes of it."""
  head, _, rest = path.partition('/')
  if rest:
    return tree | {head: changed(tree[head], rest, change)}
  return tree | {head: change(np.array(tree[head]))}


def largest_difference(one: Any, other: Any) -> float:
  """The largest absolute difference between two trees of one structure."""
  one, other = flat(one), flat(other)
  assert one.keys() == other.keys()
  return max(np.max(np.abs(np.float64(one[k]) - np.float64(other[k]))) for k in one)


def same_bits(one: Any, other: Any) -> bool:
  """Whether two trees hold the same paths, types and bits."""
  one, other = flat(one), flat(other)
  return one.keys() == other.keys() and all(
    one[k].dtype == other[k].dtype and one[k].tobytes() == other[k].tobytes() for k in one
  )


@contextlib.contextmanager
def compilations() -> Iterator[list[float]]:
  """A list that grows by one (seconds) with every program XLA compiles inside the block."""
  import jax

  seconds: list[float] = []

  def note(event: str, duration: float, **_: object) -> None:
    if 'backend_compile' in event:
      seconds.append(duration)

  jax.monitoring.register_event_duration_secs_listener(note)
  try:
    yield seconds
  finally:
    jax.monitoring.unregister_event_duration_listener(note)


@contextlib.contextmanager
def references() -> Iterator[None]:
  """Within, programs are traced with all references: fast ways do other products than the model."""
  backend._plain, before = True, backend._plain
  try:
    yield
  finally:
    backend._plain = before


def dot_flops(jaxpr: Any) -> int:
  """FLOPs of all dot_generals of a jaxpr: 2 · outputs · contracted, loop bodies times their trips.

  Raises ValueError for a product under control flow whose trips are not in the jaxpr.
  """
  total = 0
  for eqn in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
    inside = sum(dot_flops(j) for value in eqn.params.values() for j in _jaxprs(value))
    if eqn.primitive.name in ('while', 'cond') and inside:
      raise ValueError(f'products inside {eqn.primitive.name} cannot be counted')
    total += inside * (eqn.params['length'] if eqn.primitive.name == 'scan' else 1)
    if eqn.primitive.name == 'dot_general':
      (contracted, _), _ = eqn.params['dimension_numbers']
      shape = eqn.invars[0].aval.shape
      total += 2 * prod(eqn.outvars[0].aval.shape) * prod(shape[d] for d in contracted)
  return total


def _jaxprs(value: Any) -> list:
  """The jaxprs among the parameters of an equation."""
  if hasattr(value, 'eqns') or hasattr(value, 'jaxpr'):
    return [value]
  return [j for v in value for j in _jaxprs(v)] if isinstance(value, (tuple, list)) else []
