"""The training and evaluation steps: pure, written once, the same under every executor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from transformer import health, loss, model, moe, objective, optimizer
from transformer.config import Config
from transformer.optimizer import Hyper
from transformer.params import merge
from transformer.state import TrainState

Batch = dict[str, jax.Array]  # tokens: as of objective.example; rows: int32 (B,), global row
Reduce = Callable  # sums a tree over devices: psum under pmap, identity under jit on a mesh
Metrics = dict[str, jax.Array]  # name -> float32 (2, …): a sum and its count
Sums = dict[str, Any]  # nats, targets, routed (moe.sums), and one for each routing loss


def loss_sums(
  config: Config, params: dict, hyper: Hyper, tokens: jax.Array, noise_B: jax.Array | None
) -> tuple[jax.Array, Sums]:
  """The objective as a sum over targets, and the sums that metrics are made of.

  A routing loss is a mean over a row's groups, added up over layers; a row counts as much as it has
  targets, so that the objective of a batch is that of its parts, however it is cut.
  """
  (answer, targets_BT, weights_BT), aux = _answer(config, params, tokens, noise_B)
  total, (nats, targets) = loss.sums(
    answer, targets_BT, weights_BT, config.loss.label_smoothing, hyper['loss.z_loss']
  )
  sums = {'nats': nats, 'targets': targets, 'routed': aux.metrics}
  for name, loss_LB in aux.losses.items():
    sums[name] = jnp.sum(loss_LB * jnp.sum(weights_BT, axis=1))
    total += hyper[f'moe.{name}_loss'] * sums[name]
  return total, sums


def _answer(config: Config, params: dict, tokens: jax.Array, noise_B: jax.Array | None) -> tuple:
  """((what `loss.sums` takes of each target), what the layers return beside)."""
  asked = objective.example(config, tokens, noise_B)
  (answer, aux), _ = forward(config, params, asked, noise_B, logits=False)
  return (answer, asked.targets_BT, asked.weights_BT), aux


def forward(
  config: Config,
  params: dict,
  asked: objective.Example,
  noise_B: jax.Array | None = None,
  watch: tuple[str, ...] = (),
  logits: bool = True,
) -> tuple[tuple, dict]:
  """((logits_BTV, Aux), what the model keeps of itself in the collections `watch`)."""
  noise_B = noise_B if objective.uses_noise(config) else None
  return model.build(config, logits=logits).apply(
    {'params': params}, *asked.arguments, noise_B=noise_B, mutable=list(watch)
  )


def train_step(
  config: Config, state: TrainState, batch: Batch, reduce: Reduce
) -> tuple[TrainState, Metrics]:
  """One optimizer step on a batch, or on this device's share of it.

  Gradients are summed over micro-batches and devices and divided once by the global number of
  targets. A step whose loss, gradient or result is not finite changes nothing but the counters.
  """
  grads, sums = reduce(_accumulate(config, state, batch, noise_key(state)))
  loss_sum, targets = sums['nats'], sums['targets']
  rate = optimizer.learning_rate(config, state.step, state.hyper)
  share = 1.0 / jnp.maximum(targets, 1.0)
  norm = share * optimizer.global_norm(grads)
  scale = share * optimizer.clip(norm, state.hyper)

  def updated() -> tuple:
    own = (state.opt_state, state.params, state.hyper, rate)
    return optimizer.update(config, grads, scale, *own)

  first = updated()
  finite = [jnp.all(jnp.isfinite(p)) for p in jax.tree.leaves(first[0])]  # 0/0 in Adam at eps=0
  good = jnp.isfinite(loss_sum) & jnp.isfinite(norm) & jnp.all(jnp.stack(finite))

  def new() -> dict:
    # Computed again in place of the old: to keep the first would hold the state twice.
    params, opt_state = first if optimizer.costly(config) else updated()
    return {
      'params': params,
      'opt_state': opt_state,
      'model_state': health.rebalanced(config, state.model_state, sums['routed'], state.hyper),
      'ema': optimizer.average(config, state.ema, params, state.step),
    }

  def old() -> dict:
    return {n: getattr(state, n) for n in ('params', 'opt_state', 'model_state', 'ema')}

  bad = 1 - good.astype(jnp.int32)
  state = state.replace(
    step=state.step + 1,
    **jax.lax.cond(good, new, old),
    bad_steps=(state.bad_steps + 1) * bad,
    skipped=state.skipped + bad,
  )
  metrics = {
    'train/loss': jnp.where(good, jnp.stack([loss_sum, targets]), 0.0),
    'train/grad_norm': jnp.where(good, jnp.stack([norm, 1.0]), 0.0),
    'train/learning_rate': jnp.stack([rate, 1.0]),
    'train/skipped_steps': jnp.stack([bad.astype(jnp.float32), 1.0]),
    'bad': jnp.stack([state.bad_steps.astype(jnp.float32), norm]),
  }
  routed = health.health(config, sums['routed'])
  routed |= {
    f'router/{name}_loss': jnp.stack([sums[name], targets]) for name in moe.LOSSES if name in sums
  }
  return state, metrics | {name: jnp.where(good, x, 0.0) for name, x in routed.items()}


def gradient(config: Config, state: TrainState, batch: Batch, reduce: Reduce) -> tuple[dict, Sums]:
  """The mean gradient over all targets of a step, and the sums over them."""
  grads, sums = reduce(_accumulate(config, state, batch, noise_key(state)))
  return jax.tree.map(lambda g: g / jnp.maximum(sums['targets'], 1.0), grads), sums


def noise_key(state: TrainState) -> jax.Array:
  """The key of all that a step draws; folded with the row it gives the row's own."""
  return jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)


def eval_step(config: Config, params: dict, batch: Batch, reduce: Reduce) -> Sums:
  """Sums over a batch: `nats` of cross-entropy, `targets`, and `routed`."""
  answer, aux = _answer(config, params, batch['tokens'], None)
  nats, targets = loss.sums(*answer)[1]
  return reduce({'nats': nats, 'targets': targets, 'routed': aux.metrics})


def row_noise(config: Config, key: jax.Array, part: Batch) -> jax.Array | None:
  """noise_B: a key for each row of a (micro-)batch; None where training draws nothing."""
  if not objective.uses_noise(config) and config.model.architecture != 'encoder':
    return None
  return jax.vmap(lambda row: jax.random.fold_in(key, row))(part['rows'])


def micro_batches(batch: Batch, parts: int) -> Batch:
  """A batch cut along a new leading axis.

  Micro-batch a takes rows a, a + parts, …, so that rows stay on the device that holds them.
  """
  return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def _accumulate(config: Config, state: TrainState, batch: Batch, key: jax.Array) -> tuple:
  """Sums of gradient and metrics over the micro-batches of a batch."""

  def one(part: Batch) -> tuple:
    noise_B = row_noise(config, key, part)

    def objective(params: dict) -> tuple:
      variables = merge(params, state.model_state)
      return loss_sums(config, variables, state.hyper, part['tokens'], noise_B)

    return jax.grad(objective, has_aux=True)(state.params)

  if config.train.accumulate == 1:
    return one(batch)
  cut = micro_batches(batch, config.train.accumulate)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    jax.eval_shape(one, jax.tree.map(lambda x: x[0], cut)),
  )
  sums, _ = jax.lax.scan(lambda s, part: (jax.tree.map(jnp.add, s, one(part)), None), zeros, cut)
  return sums
