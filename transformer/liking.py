"""What each expert likes: the tokens that come to it more often than to others.

The lift of a token for an expert is P(token | it came to the expert) / P(token), over held-out
tokens, whether they found a place there or not. It is 1 where routing does not care for the token,
and E / k at most where each of E experts gets as many tokens, k of E each token.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer import count, objective, step
from transformer.config import Config, routing
from transformer.data import Data
from transformer.files import replacing
from transformer.routers import Decision, ExpertChoice

FILE = 'experts.json'
_LOOKED_AT = 16_384  # held-out tokens
_LEAST = 10  # times that a token has to be among them: the lift of rare ones is chance
_MOST = 8  # tokens of an expert


def wanted(config: Config) -> bool:
  """Whether a resolved config's experts get some tokens and not others."""
  has = any(group.experts for group in count.groups(config))
  kind = routing.router(config).decision
  all_of_them = kind == 'token' and routing.choices(config) == routing.experts(config)
  return has and kind != 'soft' and not all_of_them


def choices(config: Config, params: dict, batch: step.Batch) -> dict[str, dict[str, jax.Array]]:
  """Group of layers -> what its layers decide about the tokens of a batch, as evaluation does.

  tokens (N,): their ids, below 0 for padding. ids and experts (L, P): which came to which, ids
  below 0 where nothing did.
  """
  asked = objective.example(config, batch['tokens'])
  _, seen = step.forward(config, params, asked, watch=('diagnostics',))
  inputs = dict(zip(count.stacks(config), asked.arguments, strict=False))
  found = {}
  for group in count.groups(config):
    if group.experts:
      ids_BT, decision = inputs[group.stack], seen['diagnostics'][group.name]['ffn']['routing']
      pairs = jax.vmap(lambda made, ids_BT=ids_BT: _pairs(made, ids_BT))(decision)
      found[group.name] = {'tokens': ids_BT.reshape(-1)} | pairs
  return found


def _pairs(decision: Decision, ids_BT: jax.Array) -> dict[str, jax.Array]:
  """One layer's."""
  if isinstance(decision, ExpertChoice):
    ids_GT = ids_BT.reshape(decision.tokens_GEC.shape[0], -1)
    ids = jnp.take_along_axis(ids_GT[:, None], decision.tokens_GEC, axis=-1)
    ids = jnp.where(decision.weights_GEC > 0, ids, -1)
    experts = jnp.broadcast_to(jnp.arange(ids.shape[1])[:, None], ids.shape)
  else:
    experts = decision.experts_GTR
    ids = jnp.broadcast_to(ids_BT.reshape(*experts.shape[:2], 1), experts.shape)
  return {'ids': ids.reshape(-1), 'experts': experts.reshape(-1)}


def write(config: Config, decide: Callable[[dict], dict], data: Data, folder: Path) -> None:
  """Writes experts.json into `folder`: each expert's share of the load and what it likes.

  decide: `choices` of a host batch. Of the first held-out tokens, those that are there often.
  """
  rows = max(1, _LOOKED_AT // config.data.seq_len)
  batches = itertools.islice(data.eval_batches(), max(1, rows // config.data.batch_size))
  seen = [jax.device_get(decide({'tokens': tokens[:rows]})) for tokens in batches]
  seen = jax.tree.map(lambda *parts: np.concatenate(parts, axis=-1), *seen)
  layers = []
  for group in count.groups(config):
    for i in range(group.size if group.experts else 0):
      own = seen[group.name]
      found = likes(own['tokens'], own['ids'][i], own['experts'][i], group.experts)
      for liked in (token for expert in found for token in expert['likes'] if data.tokenizer):
        liked['text'] = data.tokenizer.decode([liked['id']])
      layers.append({'layer': group.before + group.first + i, 'experts': found})
  with replacing(folder / FILE) as f:
    f.write(json.dumps({'least': _LEAST, 'layers': layers}, ensure_ascii=False) + '\n')


def likes(
  tokens_N: np.ndarray, ids_P: np.ndarray, experts_P: np.ndarray, experts: int
) -> list[dict[str, Any]]:
  """Of each expert its share of the load and the ids of highest lift, more frequent ones first.

  Arguments as `choices` returns them of one layer.
  """
  often_V, times_V = np.unique(tokens_N[tokens_N >= 0], return_counts=True)
  total = times_V.sum()
  often_V, times_V = often_V[times_V >= _LEAST], times_V[times_V >= _LEAST]
  came_E = np.bincount(experts_P[ids_P >= 0], minlength=experts)
  is_often_P = np.isin(ids_P, often_V)
  at_P = np.searchsorted(often_V, ids_P[is_often_P])
  cells_P = experts_P[is_often_P] * len(often_V) + at_P
  count_EV = np.bincount(cells_P, minlength=experts * len(often_V)).reshape(experts, -1)
  # Whole numbers up to here, so that what is equal stays equal.
  lift_EV = count_EV * total / np.maximum(came_E[:, None] * times_V, 1)
  found = []
  for came, count_V, lift_V in zip(came_E, count_EV, lift_EV, strict=True):
    best = [v for v in np.lexsort((-count_V, -lift_V))[:_MOST] if lift_V[v] > 1.0]
    told = [
      {'id': int(often_V[v]), 'count': int(count_V[v]), 'lift': float(lift_V[v])} for v in best
    ]
    found.append({'share': float(came / max(came_E.sum(), 1)), 'likes': told})
  return found
