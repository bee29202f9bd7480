"""The learning rate over time, as a share of its peak.

Step 0 of w warm-up steps runs at 1/w, so that no step is wasted at rate 0. What falls to `final`
would reach it at step `train.steps`, one past the last.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from transformer import spec

Hyper = dict[str, jax.Array]  # traced setting by flag name -> float32 scalar

SCHEDULES = spec.bodies('optim.schedule')  # name -> (step, hyper) -> share of the peak


def _warm_up(step: jax.Array, hyper: Hyper, then: jax.Array) -> jax.Array:
  """A straight line up to 1, and `then` after it."""
  steps = _warmup_steps(hyper)
  return jnp.where(step < steps, (step + 1.0) / jnp.maximum(steps, 1.0), then)


def _warmup_steps(hyper: Hyper) -> jax.Array:
  return jnp.round(hyper['train.steps'] * hyper['optim.schedule.warmup'])


def _done(step: jax.Array, start: jax.Array, hyper: Hyper) -> jax.Array:
  """The share of the way from step `start` to the end."""
  return jnp.clip((step - start) / jnp.maximum(hyper['train.steps'] - start, 1.0), 0.0, 1.0)


def constant(step: jax.Array, hyper: Hyper) -> jax.Array:
  """The peak."""
  return _warm_up(step, hyper, jnp.ones(()))


def linear(step: jax.Array, hyper: Hyper) -> jax.Array:
  """A straight line to `final`."""
  final, done = hyper['optim.schedule.final'], _done(step, _warmup_steps(hyper), hyper)
  return _warm_up(step, hyper, final + (1.0 - final) * (1.0 - done))


def cosine(step: jax.Array, hyper: Hyper) -> jax.Array:
  """Half a cosine to `final` (Loshchilov & Hutter 2017)."""
  final, done = hyper['optim.schedule.final'], _done(step, _warmup_steps(hyper), hyper)
  fall = final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
  return _warm_up(step, hyper, fall)


def inverse_sqrt(step: jax.Array, hyper: Hyper) -> jax.Array:
  """√(w / n) at the n-th step (Vaswani et al. 2017, §5.3, divided by its value at n = w)."""
  return _warm_up(step, hyper, jnp.sqrt(jnp.maximum(_warmup_steps(hyper), 1.0) / (step + 1.0)))


def wsd(step: jax.Array, hyper: Hyper) -> jax.Array:
  """The peak, then down to `final` over the last `decay` of the steps (Hu et al. 2024, §4).

  By 1 − x^power: Hägele et al. 2024 find a straight line (1) worse than 1 − √x (.5).
  """
  steps, final = hyper['train.steps'], hyper['optim.schedule.final']
  start = steps - jnp.round(steps * hyper['optim.schedule.decay'])
  fallen = _done(step, start, hyper) ** hyper['optim.schedule.power']
  return _warm_up(step, hyper, final + (1.0 - final) * (1.0 - fallen))


SCHEDULES |= {
  'constant': constant,
  'linear': linear,
  'cosine': cosine,
  'inverse_sqrt': inverse_sqrt,
  'wsd': wsd,
}
