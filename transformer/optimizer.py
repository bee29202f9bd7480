"""Optimizers from optax, whose numbers are read from `hyper` when the step runs.

Configs that differ only in rates, decay or length therefore share one compiled program. An
optimizer's body gives the direction of a step; rate, decay and clipping are applied here, once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import prod

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from transformer import axes, parametrization, spec
from transformer.config import Config
from transformer.params import decay_mask, path_of
from transformer.schedules import SCHEDULES, Hyper

# name -> (config, hyper) -> transformation. Arguments declared static are read from the config.
OPTIMIZERS = spec.bodies('optim.name')


def learning_rate(config: Config, step: jax.Array, hyper: Hyper) -> jax.Array:
  """The rate of a step: peak times schedule."""
  shape = SCHEDULES[spec.parse('optim.schedule', config.optim.schedule).variant]
  return hyper['optim.learning_rate'] * shape(step.astype(jnp.float32), hyper)


def init(config: Config, params: dict, hyper: Hyper) -> optax.OptState:
  """The optimizer's state for `params`."""
  return _transform(config, hyper).init(params)


def global_norm(grads: dict) -> jax.Array:
  """The root of the sum of all squares."""
  return jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))


def clip(norm: jax.Array, hyper: Hyper) -> jax.Array:
  """The factor for a gradient of this global norm that clips it."""
  return jnp.minimum(1.0, hyper['optim.clip_norm'] / jnp.maximum(norm, 1e-30))


def update(
  config: Config,
  grads: dict,
  scale: jax.Array,
  opt_state: optax.OptState,
  params: dict,
  hyper: Hyper,
  rate: jax.Array,
) -> tuple[dict, optax.OptState]:
  """Transforms and applies the gradient that is `grads` times `scale`.

  Returns (params, opt_state).
  """
  grads = jax.tree.map(lambda g: g * scale, grads)
  decays = decay_mask(params)
  if 'optim.name.l2' in hyper:
    pull = _scaled(params, decays, hyper['optim.name.l2'])
    grads = jax.tree.map(jnp.add, grads, pull)
  steps, opt_state = _transform(config, hyper).update(grads, opt_state, params)

  def move(path: tuple, p: jax.Array, step: jax.Array, pull: jax.Array) -> jax.Array:
    return p - rate * (step * parametrization.rate_factor(config, path_of(path)) + pull)

  pull = _scaled(params, decays, hyper['optim.weight_decay'])
  return jax.tree_util.tree_map_with_path(move, params, steps, pull), opt_state


def _scaled(params: dict, mask: dict, factor: jax.Array) -> dict:
  """factor · params where the mask holds, else 0."""
  return jax.tree.map(lambda p, on: factor * p if on else 0.0, params, mask)


def costly(config: Config) -> bool:
  """Whether an update multiplies matrices; else it is bound by the memory that it reads."""
  return spec.parse('optim.name', config.optim.name).variant == 'muon'


def average(config: Config, ema: dict, params: dict, step: jax.Array) -> dict:
  """The moving average of the weights after a step; {} where optim.ema is 0.

  Its decay is min(optim.ema, (1 + t) / (10 + t)) after t earlier steps, so that the average soon
  forgets the initial weights (as TensorFlow's ExponentialMovingAverage).
  """
  if not ema:
    return ema
  t = step.astype(jnp.float32)
  keep = jnp.minimum(config.optim.ema, (1.0 + t) / (10.0 + t))
  return jax.tree.map(lambda e, p: e + (1.0 - keep) * (p - e), ema, params)


def _transform(config: Config, hyper: Hyper) -> optax.GradientTransformation:
  return OPTIMIZERS[spec.parse('optim.name', config.optim.name).variant](config, hyper)


# --- Optimizers: each gives the direction of a step, before rate and decoupled decay.


def adam(config: Config, hyper: Hyper) -> optax.GradientTransformation:
  """Kingma & Ba 2015, algorithm 1."""
  return optax.scale_by_adam(**{n: hyper[f'optim.name.{n}'] for n in ('b1', 'b2', 'eps')})


def sgd(config: Config, hyper: Hyper) -> optax.GradientTransformation:
  """The sum of gradients, older ones decayed."""
  nesterov = spec.parse('optim.name', config.optim.name).nesterov
  return optax.trace(hyper['optim.name.momentum'], nesterov)


def lion(config: Config, hyper: Hyper) -> optax.GradientTransformation:
  """Chen et al. 2023, program 1."""
  return optax.scale_by_lion(hyper['optim.name.b1'], hyper['optim.name.b2'])


def adafactor(config: Config, hyper: Hyper) -> optax.GradientTransformation:
  """Shazeer & Stern 2018, algorithm 4 at an absolute rate; `relative`: algorithm 5.

  Absolute by default, so that AdamW's rate serves it too (as Zhai et al. 2022, §3.4).
  """
  variant = spec.parse('optim.name', config.optim.name)
  inner = optax.chain(
    optax.scale_by_factored_rms(
      decay_rate=hyper['optim.name.power'], min_dim_size_to_factor=variant.factor_from
    ),
    optax.clip_by_block_rms(hyper['optim.name.clip']),
    optax.scale_by_param_block_rms() if variant.relative else optax.identity(),
  )

  def init(params: dict) -> dict:
    return jax.tree_util.tree_map_with_path(
      lambda path, p: _by_layer(path, inner.init)(p), _matrices(params)
    )

  def update(grads: dict, state: dict, params: dict) -> tuple[dict, dict]:
    both = jax.tree_util.tree_map_with_path(
      lambda path, g, s, p: _by_layer(path, inner.update)(g, s, p),
      *(_matrices(grads), state, _matrices(params)),
    )
    steps = jax.tree.map(lambda g, out: out[0].reshape(g.shape), grads, both)
    return steps, jax.tree.map(lambda _, out: out[1], grads, both)

  return optax.GradientTransformation(init, update)


def muon(config: Config, hyper: Hyper) -> optax.GradientTransformation:
  """Jordan et al. 2024; Adam for what is not a matrix between two widths.

  An orthogonal matrix of n rows and columns has rms 1/√n: times .2 √max(fan_in, fan_out) it has
  about Adam's (Liu et al. 2025, eq. 4).
  """
  variant = spec.parse('optim.name', config.optim.name)

  def dimensions(params: dict) -> dict:
    return jax.tree_util.tree_map_with_path(lambda p, _: _muon_axes(path_of(p)), params)

  def rescale(steps: dict, params: dict | None = None) -> dict:
    def one(path: tuple, x: jax.Array) -> jax.Array:
      sides = (prod(x.shape[i] for i in side) for side in _muon_axes(path_of(path)))
      return 0.2 * max(sides) ** 0.5 * x

    return jax.tree_util.tree_map_with_path(one, steps)

  orthogonal = contrib.scale_by_muon(
    ns_steps=variant.iterations,
    beta=hyper['optim.name.beta'],
    nesterov=variant.nesterov,
    weight_dimension_numbers=dimensions,
  )
  return optax.partition(
    {'muon': optax.chain(orthogonal, optax.stateless(rescale)), 'adam': adam(config, hyper)},
    lambda params: jax.tree_util.tree_map_with_path(
      lambda p, _: 'muon' if parametrization.hidden(path_of(p)) else 'adam', params
    ),
  )


def _muon_axes(path: str) -> contrib.MuonDimensionNumbers:
  """Which dimensions a matrix sums over and which it yields; layers and experts are neither."""
  letters, fan_in = axes.letters(path), axes.param(path).fan_in
  first = len(axes.stack_of(path))
  return contrib.MuonDimensionNumbers(
    tuple(i for i, c in enumerate(letters) if c in fan_in),
    tuple(i for i, c in enumerate(letters) if i >= first and c not in fan_in),
  )


def _by_layer(path: tuple, function: Callable) -> Callable:
  """`function` of arrays, applied to each layer and each expert of stacked ones."""
  for _ in axes.stack_of(path_of(path)):
    function = jax.vmap(function)
  return function


def _matrices(tree: dict) -> dict:
  """A tree of parameters with heads and head width as one dimension."""

  def one(path: tuple, x: jax.Array) -> jax.Array:
    heads = re.search('[NK][HW]', axes.letters(path_of(path)))
    return x.reshape(*x.shape[: heads.start()], -1, *x.shape[heads.end() :]) if heads else x

  return jax.tree_util.tree_map_with_path(one, tree)


OPTIMIZERS |= {
  'adamw': adam,
  'adam': adam,
  'sgd': sgd,
  'lion': lion,
  'adafactor': adafactor,
  'muon': muon,
}
