"""Oracle of a mixture of experts, NumPy in float64: loops over groups, tokens and choices."""

from __future__ import annotations

from fractions import Fraction
from math import floor
from typing import NamedTuple

import numpy as np
from scipy import special

from tests import reference_ffn
from transformer import spec
from transformer.config import Config


class Choice(NamedTuple):
  """A token of a group and an expert of it. rank: how many the token has before this one."""

  token: int
  rank: int
  expert: int
  weight: float


class Group(NamedTuple):
  """What became of one routing group.

  y_TD: the output. choices: those with a place. load_E: of all choices, placed or not. dropped,
  entropy, log_z: sums over `tokens`, those that are not padding. losses: by name.
  """

  y_TD: np.ndarray
  choices: list[Choice]
  load_E: np.ndarray
  dropped: int
  tokens: int
  entropy: float
  log_z: float
  losses: dict[str, float]


class Layer(NamedTuple):
  """What became of a batch. losses: name -> (B,). sums: as of moe.sums."""

  y_BTD: np.ndarray
  choices: list[list[Choice]]
  losses: dict[str, np.ndarray]
  sums: dict[str, np.ndarray | float]


def moe(
  config: Config, weights: dict, x_BTD: np.ndarray, ids_BT: np.ndarray, layer=0, training=False
) -> Layer:
  """A layer of experts with the weights of one layer, {'experts': {…}, 'router': …}."""
  y_BTD, groups, losses = np.zeros_like(x_BTD), [], []
  length = config.moe.group_size or x_BTD.shape[1]
  for b in range(len(x_BTD)):
    own = []
    for begin in range(0, x_BTD.shape[1], length):
      part = slice(begin, begin + length)
      own.append(group(config, weights, x_BTD[b, part], ids_BT[b, part], layer, training))
      y_BTD[b, part] = own[-1].y_TD
    if config.moe.shared_experts:
      y_BTD[b] += reference_ffn.ffn(weights['shared'], config.ffn.activation, x_BTD[b])
    tokens = max(1, sum(g.tokens for g in own))  # a group counts for as much as it has of them
    losses.append({n: sum(g.losses[n] * g.tokens for g in own) / tokens for n in own[0].losses})
    groups += own
  names = ('dropped', 'tokens', 'entropy', 'log_z')
  sums = {name: sum(getattr(g, name) for g in groups) for name in names}
  sums['load'] = sum(g.load_E for g in groups)
  by_name = {name: np.array([row[name] for row in losses]) for name in losses[0]}
  return Layer(y_BTD, [g.choices for g in groups], by_name, sums)


def group(
  config: Config, weights: dict, x_TD: np.ndarray, ids_T: np.ndarray, layer: int, training: bool
) -> Group:
  """Tokens that are routed together; padding is as if it were not there, but for the capacity."""
  variant = spec.parse('moe.router', config.moe.router)
  there = [t for t in range(len(ids_T)) if ids_T[t] >= 0]
  E = len(weights['experts']['down'])
  if variant.decision == 'soft':
    return _soft(config, weights, x_TD, there)
  scores_TE = x_TD @ weights['router'] if 'router' in weights else None
  probs_TE = None if scores_TE is None else probabilities(variant, scores_TE)
  k = {'dense': config.moe.experts}.get(variant.variant, getattr(variant, 'k', 0))
  R = k * config.moe.granularity
  if variant.decision == 'expert':
    places = capacity(variant.factor * config.moe.granularity, len(x_TD), E)
    choices = placed = by_experts(probs_TE, there, places)
    dropped = len(set(there) - {c.token for c in choices})
  else:
    choices = []
    for t in there:
      if scores_TE is None:
        found = hashed(variant, weights, int(ids_T[t]), layer, E, R)
      else:
        found = chosen(variant, scores_TE[t], weights.get('router_bias', np.zeros(E)), R)
      choices += [Choice(t, rank, expert, weight) for rank, (expert, weight) in enumerate(found)]
    placed = with_places(config, choices, len(x_TD), E, R, training)
    dropped = len(choices) - len(placed)
  y_TD = np.zeros_like(x_TD)
  for c in placed:
    y_TD[c.token] += c.weight * expert(config, weights, c.expert, x_TD[c.token])
  load_E = np.bincount([c.expert for c in choices], minlength=E)
  entropy, log_z, losses = 0.0, 0.0, {}
  if scores_TE is not None:
    entropy = sum(special.entr(probs_TE[t]).sum() for t in there)
    log_z_T = special.logsumexp(scores_TE, axis=1)
    log_z = sum(log_z_T[t] for t in there)
    if 'z' in variant.losses:
      losses['z'] = sum(log_z_T[t] ** 2 for t in there) / max(1, len(there))
  if 'balance' in variant.losses:
    mean_E = sum((probs_TE[t] for t in there), np.zeros(E)) / max(1, len(there))
    losses['balance'] = E * np.sum(load_E / max(1, len(choices)) * mean_E)
  return Group(y_TD, placed, load_E, dropped, len(there), entropy, log_z, losses)


def expert(config: Config, weights: dict, e: int, x_D: np.ndarray) -> np.ndarray:
  """What one expert makes of one token."""
  own = {name: leaf[e] for name, leaf in weights['experts'].items()}
  return reference_ffn.ffn(own, config.ffn.activation, x_D[None])[0]


def probabilities(variant, scores: np.ndarray) -> np.ndarray:
  """Of each expert, from the scores of one token or more."""
  if getattr(variant, 'score', '') == 'sigmoid':
    each = special.expit(scores)
    return each / each.sum(axis=-1, keepdims=True)
  return special.softmax(scores, axis=-1)


def chosen(variant, scores_E: np.ndarray, bias_E: np.ndarray, R: int) -> list[tuple[int, float]]:
  """The experts of one token, best first, and their weights."""
  if variant.variant == 'dense':
    return list(enumerate(special.softmax(scores_E)))
  sigmoid = variant.score == 'sigmoid'
  value_E = special.expit(scores_E) if sigmoid else special.softmax(scores_E)
  best_R = sorted(range(len(scores_E)), key=lambda e: -(value_E[e] + bias_E[e]))[:R]
  if variant.score == 'after':
    return list(zip(best_R, special.softmax(scores_E[best_R]), strict=True))
  total = sum(value_E[best_R]) if variant.renormalise else 1.0
  return [(e, value_E[e] / total) for e in best_R]


def hashed(variant, weights: dict, token: int, layer: int, E: int, R: int) -> list:
  """The experts of an id: the hash of it and those that follow."""
  if variant.balanced:
    first = (token + int(weights['router_table'][token])) % E
  else:
    first = murmur(token + (layer + 1) * 0x9E3779B9) % E
  return [((first + r) % E, 1 / R) for r in range(R)]


def murmur(x: int) -> int:
  """The finaliser of MurmurHash3 in integers of any size, cut to 32 bits at each step."""
  x %= 2**32
  x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
  x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
  return x ^ x >> 16


def by_experts(probs_TE: np.ndarray, there: list[int], places: int) -> list[Choice]:
  """Each expert's tokens of highest probability, as many as it has places."""
  found = []
  for e in range(probs_TE.shape[1]):
    best = sorted(there, key=lambda t: -probs_TE[t, e])[:places]
    found += [Choice(t, 0, e, probs_TE[t, e]) for t in best]
  return found


def capacity(share: float, length: int, E: int) -> int:
  """⌊share · T / E⌋ of the number as it is written, at most T."""
  return min(length, floor(Fraction(str(share)) * length / E))


def with_places(
  config: Config, choices: list[Choice], length: int, E: int, R: int, training: bool
) -> list[Choice]:
  """The choices that a dispatcher finds a place for."""
  mover = spec.parse('moe.dispatch', config.moe.dispatch)
  if not mover.drops:
    return choices
  factor = config.moe.capacity_factor if training else config.moe.eval_capacity_factor
  places = capacity(Fraction(str(factor)) * R, length, E)
  before = {
    'order': lambda c: (c.token, c.rank),
    'choice': lambda c: (c.rank, c.token),
    'score': lambda c: (-c.weight, c.token, c.rank),
  }[mover.priority]
  found = []
  for e in range(E):
    found += sorted((c for c in choices if c.expert == e), key=before)[:places]
  return found


def _soft(config: Config, weights: dict, x_TD: np.ndarray, there: list[int]) -> Group:
  """Each slot of each expert is a mean of tokens, each token a mean of what slots become."""
  slots_DEC = weights['router_slots']
  E, C = slots_DEC.shape[1:]
  scores_TEC = np.einsum('td,dec->tec', x_TD, slots_DEC)
  y_TD, load_E, entropy, log_z = np.zeros_like(x_TD), np.zeros(E), 0.0, 0.0
  back_TEC = {t: special.softmax(scores_TEC[t]) for t in there}
  for e in range(E):
    for c in range(C):
      send = special.softmax(scores_TEC[there, e, c])
      slot_D = sum((s * x_TD[t] for s, t in zip(send, there, strict=True)), np.zeros(len(x_TD[0])))
      out_D = expert(config, weights, e, slot_D)
      for t in there:
        y_TD[t] += back_TEC[t][e, c] * out_D
  for t in there:
    of_experts_E = back_TEC[t].sum(axis=1)
    load_E += of_experts_E
    entropy += special.entr(of_experts_E).sum()
    log_z += special.logsumexp(scores_TEC[t])
  return Group(y_TD, [], load_E, 0, len(there), entropy, log_z, {})
