"""Everything a run is between two steps."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from transformer import optimizer, params
from transformer.config import Config, hyper
from transformer.params import merge


@flax.struct.dataclass
class TrainState:
  """A pytree; `hyper` is not saved but rebuilt from the config on resume.

  step: int32, steps taken, bad ones included. params, opt_state: float32 trees.
  model_state: what routers keep between steps, which no gradient changes: a part of the same tree.
  ema: a moving average of params, float32; {} where optim.ema is 0.
  hyper: traced settings by flag name. key: uint32 (2,), the run's PRNG key data.
  bad_steps: int32, non-finite steps in a row. skipped: int32, non-finite steps in all.
  """

  step: jax.Array
  params: dict
  opt_state: optax.OptState
  model_state: dict
  ema: dict
  hyper: dict[str, jax.Array]
  key: jax.Array
  bad_steps: jax.Array
  skipped: jax.Array

  @property
  def eval_params(self) -> dict:
    """The weights a run is judged by: the moving average where there is one."""
    return merge(self.ema or self.params, self.model_state)

  @property
  def variables(self) -> dict:
    """The weights that are trained, and what routers keep beside them."""
    return merge(self.params, self.model_state)


def hyper_arrays(config: Config) -> dict[str, np.ndarray]:
  """The traced settings of a resolved config as float32 scalars."""
  return {name: np.float32(value) for name, value in hyper(config).items()}


def create(config: Config, seed: jax.Array, hypers: dict[str, jax.Array]) -> TrainState:
  """The state before step 0. Pure; `seed` and `hypers` may be traced, `config` is static."""
  init_key, noise_key = jax.random.split(jax.random.key(seed))
  weights = params.initialize(config, init_key)
  zero = jnp.zeros((), jnp.int32)
  return TrainState(
    step=zero,
    params=weights,
    opt_state=optimizer.init(config, weights, hypers),
    model_state=params.initialize_kept(config, init_key),
    ema=weights if config.optim.ema else {},
    hyper=hypers,
    key=jax.random.key_data(noise_key),
    bad_steps=zero,
    skipped=zero,
  )
