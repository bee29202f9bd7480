"""Bodies of the routers declared in config/moe.py: scores, and what follows from them.

All are functions of a routing group's tokens, (G, T, …); groups never mix. Scores are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer import spec

ROUTERS: dict[str, Callable] = spec.bodies('moe.router')


class Tokens(NamedTuple):
  """What a router sees, beside its declaration.

  logits_GTE: scores before any softmax, of soft routing (G, T, E, C); None where it has none.
  present_GT: False on padding. ids_GT: of the tokens. weights: its arrays by name. layer: its
  number. choices: experts a token chooses. capacity: tokens an expert chooses. experts: E.
  """

  logits_GTE: jax.Array | None
  present_GT: jax.Array
  ids_GT: jax.Array
  weights: dict[str, jax.Array]
  layer: jax.Array
  choices: int
  capacity: int
  experts: int


class TokenChoice(NamedTuple):
  """Each token's experts and their weights; expert E means none."""

  experts_GTR: jax.Array
  weights_GTR: jax.Array


class ExpertChoice(NamedTuple):
  """Each expert's tokens of a group, by place, and their weights: 0 where it has no more."""

  tokens_GEC: jax.Array
  weights_GEC: jax.Array


class Soft(NamedTuple):
  """How much of each token is in each slot, and of each slot in each token."""

  send_GTEC: jax.Array
  back_GTEC: jax.Array


Decision = TokenChoice | ExpertChoice | Soft


class Routing(NamedTuple):
  """A decision and the scores it was made of.

  probs_GTE: of each expert for each token, adding up to 1; None where there are none.
  """

  decision: Decision
  probs_GTE: jax.Array | None


def route(variant: Any, seen: Tokens) -> Routing:
  """What a parsed variant of moe.router decides about its tokens; padding goes nowhere."""
  found = ROUTERS[variant.variant](variant, seen)
  decision = found.decision
  if isinstance(decision, TokenChoice):
    there_GT1 = seen.present_GT[..., None]
    decision = TokenChoice(
      jnp.where(there_GT1, decision.experts_GTR, seen.experts),
      jnp.where(there_GT1, decision.weights_GTR, 0.0),
    )
  return Routing(decision, found.probs_GTE)


def _body(*names: str) -> Callable:
  def register(function: Callable) -> Callable:
    ROUTERS.update(dict.fromkeys(names, function))
    return function

  return register


@_body('topk', 'switch', 'bias', 'random')
def top_k(variant: Any, seen: Tokens) -> Routing:
  """The experts of highest score; of equal ones the first. A bias has a say in the choice alone."""
  logits_GTE = seen.logits_GTE
  if variant.score == 'sigmoid':
    scores_GTE = jax.nn.sigmoid(logits_GTE)
    probs_GTE = scores_GTE / jnp.sum(scores_GTE, axis=-1, keepdims=True)
  else:
    scores_GTE = probs_GTE = jax.nn.softmax(logits_GTE)
  ranked_GTE = jax.lax.stop_gradient(scores_GTE) + seen.weights.get('router_bias', 0.0)
  _, experts_GTR = jax.lax.top_k(ranked_GTE, seen.choices)
  if variant.score == 'after':
    weights_GTR = jax.nn.softmax(_pick(logits_GTE, experts_GTR))
  else:
    weights_GTR = _pick(scores_GTE, experts_GTR)
    if variant.renormalise:
      weights_GTR /= jnp.sum(weights_GTR, axis=-1, keepdims=True)
  return Routing(TokenChoice(experts_GTR, weights_GTR), probs_GTE)


def _pick(scores_GTE: jax.Array, experts_GTR: jax.Array) -> jax.Array:
  # As a product with ones and zeros its gradient is one too, where a gather's would scatter.
  one_hot = jax.nn.one_hot(experts_GTR, scores_GTE.shape[-1], dtype=scores_GTE.dtype)
  return jnp.sum(one_hot * scores_GTE[..., None, :], axis=-1)


@_body('dense')
def dense(variant: Any, seen: Tokens) -> Routing:
  """Every expert, weighted by a softmax."""
  probs_GTE = jax.nn.softmax(seen.logits_GTE)
  experts_E = jnp.broadcast_to(jnp.arange(seen.experts), probs_GTE.shape)
  return Routing(TokenChoice(experts_E, probs_GTE), probs_GTE)


@_body('hash')
def hashed(variant: Any, seen: Tokens) -> Routing:
  """By the id: of k experts the first is the hash, or id + table[id], the others follow it."""
  ids_GT = jnp.maximum(seen.ids_GT, 0)
  if variant.balanced:
    first_GT = (ids_GT + seen.weights['router_table'][ids_GT].astype(jnp.int32)) % seen.experts
  else:
    first_GT = (_mixed(ids_GT, seen.layer) % seen.experts).astype(jnp.int32)
  experts_GTR = (first_GT[..., None] + jnp.arange(seen.choices)) % seen.experts
  weights_GTR = jnp.full(experts_GTR.shape, 1.0 / seen.choices)
  return Routing(TokenChoice(experts_GTR, weights_GTR), None)


def _mixed(ids: jax.Array, layer: jax.Array) -> jax.Array:
  """A uint32 without visible order: the finaliser of MurmurHash3 (Appleby 2011)."""
  x = ids.astype(jnp.uint32) + (layer.astype(jnp.uint32) + 1) * jnp.uint32(0x9E3779B9)
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    x = (x ^ (x >> shift)) * jnp.uint32(factor)
  return x ^ (x >> 16)


@_body('expert_choice')
def expert_choice(variant: Any, seen: Tokens) -> Routing:
  """Each expert's `capacity` tokens of highest softmax over experts (Zhou et al. 2022, §3.2)."""
  probs_GTE = jax.nn.softmax(seen.logits_GTE)
  ranked_GET = jnp.where(seen.present_GT[..., None], probs_GTE, -1.0).swapaxes(1, 2)
  weights_GEC, tokens_GEC = jax.lax.top_k(ranked_GET, seen.capacity)
  return Routing(ExpertChoice(tokens_GEC, jnp.maximum(weights_GEC, 0.0)), probs_GTE)


@_body('soft')
def soft(variant: Any, seen: Tokens) -> Routing:
  """Puigcerver et al. 2024, §2.1: of a score for each token and slot, both softmaxes."""
  logits_GTEC = seen.logits_GTE
  there_GT11 = seen.present_GT[..., None, None]
  send_GTEC = jax.nn.softmax(jnp.where(there_GT11, logits_GTEC, -1e30), axis=1) * there_GT11
  back_GTEC = jax.nn.softmax(logits_GTEC, axis=(2, 3)) * there_GT11
  return Routing(Soft(send_GTEC, back_GTEC), jnp.sum(back_GTEC, axis=-1))
