"""Optimizers from optax, whose numbers are read from `hyper` when the step runs.

Configs that differ only in rates, decay or length therefore share one compiled program.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from transformer import spec
from transformer.config import Config
from transformer.params import decay_mask

Hyper = dict[str, jax.Array]  # traced setting by flag name -> float32 scalar


def cosine(step: jax.Array, hyper: Hyper) -> jax.Array:
  """Linear warm-up, then half a cosine to `final` (Loshchilov & Hutter 2017), as a share of peak.

  Step 0 of w warm-up steps runs at 1/w of the peak, so that no step is wasted at rate 0.
  """
  steps, final = hyper['train.steps'], hyper['optim.schedule.final']
  warmup = jnp.round(steps * hyper['optim.schedule.warmup'])
  rise = (step + 1.0) / jnp.maximum(warmup, 1.0)
  done = jnp.clip((step - warmup) / jnp.maximum(steps - warmup, 1.0), 0.0, 1.0)
  fall = final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
  return jnp.where(step < warmup, rise, fall)


def adamw(hyper: Hyper) -> optax.GradientTransformation:
  """Adam with decoupled decay of the matrices (Loshchilov & Hutter 2019), before the rate."""
  h = {name: hyper[f'optim.name.{name}'] for name in ('b1', 'b2', 'eps')}
  return optax.chain(
    optax.scale_by_adam(**h),
    optax.add_decayed_weights(hyper['optim.weight_decay'], mask=decay_mask),
  )


OPTIMIZERS = {'adamw': adamw}
SCHEDULES = {'cosine': cosine}


def learning_rate(config: Config, step: jax.Array, hyper: Hyper) -> jax.Array:
  """The rate of a step: peak times schedule."""
  shape = SCHEDULES[spec.parse('optim.schedule', config.optim.schedule).variant]
  return hyper['optim.learning_rate'] * shape(step.astype(jnp.float32), hyper)


def init(config: Config, params: dict, hyper: Hyper) -> optax.OptState:
  """The optimizer's state for `params`."""
  return _transform(config, hyper).init(params)


def update(
  config: Config,
  grads: dict,
  opt_state: optax.OptState,
  params: dict,
  hyper: Hyper,
  rate: jax.Array,
) -> tuple[dict, optax.OptState, jax.Array]:
  """Clips, transforms and applies a gradient.

  Returns (params, opt_state, the global norm of the gradient before clipping).
  """
  norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
  scale = jnp.minimum(1.0, hyper['optim.clip_norm'] / jnp.maximum(norm, 1e-30))
  grads = jax.tree.map(lambda g: g * scale, grads)
  updates, opt_state = _transform(config, hyper).update(grads, opt_state, params)
  params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
  return params, opt_state, norm


def _transform(config: Config, hyper: Hyper) -> optax.GradientTransformation:
  return OPTIMIZERS[spec.parse('optim.name', config.optim.name).variant](hyper)
