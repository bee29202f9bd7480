"""Routing health: how evenly experts are used, and what routers keep to make it so.

Made of sums over tokens (moe.sums) once those of all micro-batches and devices are added up, so
that neither changes what comes out. One number a layer, over the layers of all stacks in order;
those without experts have a count of 0.
"""

from __future__ import annotations

import heapq

import jax
import jax.numpy as jnp
import numpy as np

from transformer import count
from transformer.config import Config, routing
from transformer.params import merge
from transformer.state import TrainState

Sums = dict[str, jax.Array]  # of moe.sums, stacked along the layers that have experts


def health(config: Config, sums: Sums) -> dict[str, jax.Array]:
  """Name -> (sum, count), each (L,), of router/load (L, E), by what `sums` hold of a batch.

  router/load           share of the choices that fall on each expert, dropped ones included
  router/max_violation  largest load over the mean load, less 1 (Wang et al. 2024, §4.1)
  router/load_cv        standard deviation of the load over its mean
  router/dead_experts   experts that no token chose
  router/dropped        share of choices without a place; where experts choose, of tokens that
                        none took
  router/entropy        of the router's probabilities, in nats, mean over tokens
  router/log_z          log-sum-exp of its scores, mean over tokens
  """
  if not sums:
    return {}
  load_LE, tokens_L = sums['load'], sums['tokens']
  total_L = jnp.sum(load_LE, axis=1)
  share_LE = load_LE / jnp.maximum(total_L, 1.0)[:, None]
  mean = 1.0 / load_LE.shape[1]
  some_L = (total_L > 0).astype(jnp.float32)
  of_all = total_L if routing.router(config).decision == 'token' else tokens_L
  found = {
    'load': (load_LE, jnp.broadcast_to(total_L[:, None], load_LE.shape)),
    'max_violation': (some_L * (jnp.max(share_LE, axis=1) / mean - 1.0), some_L),
    'load_cv': (some_L * jnp.std(share_LE, axis=1) / mean, some_L),
    'dead_experts': (some_L * jnp.sum(load_LE == 0.0, axis=1), some_L),
    'dropped': (sums['dropped'], of_all),
  }
  found |= {name: (sums[name], tokens_L) for name in ('entropy', 'log_z') if name in sums}
  return {f'router/{name}': _over_layers(config, jnp.stack(pair)) for name, pair in found.items()}


def _over_layers(config: Config, values_2L: jax.Array) -> jax.Array:
  """Entries of the layers with experts, among all layers."""
  groups = count.groups(config)
  at = [g.before + g.first + i for g in groups if g.experts for i in range(g.size)]
  layers = sum(g.size for g in groups)
  shape = (values_2L.shape[0], layers, *values_2L.shape[2:])
  return jnp.zeros(shape).at[:, jnp.array(at)].set(values_2L)


def wants_counts(config: Config) -> bool:
  """Whether a resolved config's routers go by how frequent tokens are."""
  return 'router_table' in routing.router(config).weights and config.moe.experts > 0


def with_tables(config: Config, state: TrainState, counts_V: np.ndarray) -> TrainState:
  """A state whose balanced hashes deal out ids by how often each occurs (Roller et al. 2021, §3.1).

  The most frequent id first, each to the expert that has the least by then. Tables hold what is
  added to an id before it is taken modulo E.
  """
  experts, load = routing.experts(config), [(0, e) for e in range(routing.experts(config))]
  table_V = np.zeros(len(counts_V), np.float32)
  for token in np.argsort(-counts_V, kind='stable'):
    total, expert = heapq.heappop(load)
    heapq.heappush(load, (total + int(counts_V[token]), expert))
    table_V[token] = (expert - token) % experts
  kept = jax.tree.map(lambda x_LV: np.broadcast_to(table_V, x_LV.shape), state.model_state)
  return state.replace(model_state=kept)


def rebalanced(config: Config, model_state: dict, sums: Sums, hyper: dict[str, jax.Array]) -> dict:
  """What routers keep after a step: biases moved by their rate towards an even load.

  b ← b + rate · sign(mean load − load) (Wang et al. 2024, algorithm 1).
  """
  if routing.router(config).variant != 'bias':
    return model_state
  load_LE = sums['load']
  move_LE = hyper['moe.router.rate'] * jnp.sign(jnp.mean(load_LE, axis=1, keepdims=True) - load_LE)
  done = 0
  for group in count.groups(config):
    if group.experts:
      bias_LE = model_state[group.name]['ffn']['router_bias'] + move_LE[done : done + group.size]
      model_state = merge(model_state, {group.name: {'ffn': {'router_bias': bias_LE}}})
      done += group.size
  return model_state
