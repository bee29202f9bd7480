"""Bodies of the dispatchers declared in config/moe.py: tokens to experts, and back.

Each takes a decision and gives `Moved`: rows laid out for the experts, and the way back. Nothing of
size tokens × experts × capacity is made, but by soft routing and the oracle.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer import spec
from transformer.layers import shard, shares
from transformer.ops.grouped import Groups, block_rows, grouped
from transformer.ops.places import Places, by_blocks, by_capacity, expert_of_rows, take
from transformer.ops.product import Product, product
from transformer.routers import Decision, ExpertChoice, Soft, TokenChoice

DISPATCHERS: dict[str, Callable] = spec.bodies('moe.dispatch')


class Place(NamedTuple):
  """experts: E. capacity: rows of each for the tokens of a group. product: the one to use."""

  experts: int
  capacity: int
  product: Product = product


class Moved(NamedTuple):
  """Rows for experts.

  rows: of x, (…, D). product, spread: as of ffn.Experts. send: z_GTF of any kind -> laid out as the
  rows are. back: what experts make of them, (…, D) -> y_GTD, weighted. dropped: choices of
  tokens that have no place.
  """

  rows: jax.Array
  product: Product
  spread: Callable[[jax.Array], jax.Array]
  send: Callable[[jax.Array], jax.Array]
  back: Callable[[jax.Array], jax.Array]
  dropped: jax.Array


def dispatch(variant: Any, decision: Decision, x_GTD: jax.Array, place: Place) -> Moved:
  """x of each token laid out for the experts a decision gives it, by a variant of moe.dispatch."""
  return DISPATCHERS[variant.variant](variant, decision, x_GTD, place)


def _body(*names: str) -> Callable:
  def register(function: Callable) -> Callable:
    DISPATCHERS.update(dict.fromkeys(names, function))
    return function

  return register


# --- As many rows for each expert: rows_EGCD.


def _even(
  place: Place, x_GTD: jax.Array, send: Callable, back: Callable, dropped: Any = 0
) -> Moved:
  def multiply(_: str, x_EGCD: jax.Array, w_EDF: jax.Array) -> jax.Array:
    return place.product('egcd,edf->egcf', x_EGCD, w_EDF)

  def spread(leaf_EF: jax.Array) -> jax.Array:
    return leaf_EF[:, None, None]

  return Moved(send(x_GTD), multiply, spread, send, back, jnp.asarray(dropped))


@_body('dense')
def dense(variant: Any, decision: Decision, x_GTD: jax.Array, place: Place) -> Moved:
  """Every token with every expert; weights_GTE put them together."""
  if isinstance(decision, TokenChoice):
    one_hot_GTRE = jax.nn.one_hot(decision.experts_GTR, place.experts)
    weights_GTE = jnp.sum(one_hot_GTRE * decision.weights_GTR[..., None], axis=2)
  else:
    one_hot_GECT = jax.nn.one_hot(decision.tokens_GEC, x_GTD.shape[1])
    weights_GTE = jnp.sum(one_hot_GECT * decision.weights_GEC[..., None], axis=2).swapaxes(1, 2)

  def send(z_GTF: jax.Array) -> jax.Array:
    return jnp.broadcast_to(z_GTF, (place.experts, *z_GTF.shape))

  def back(y_EGTD: jax.Array) -> jax.Array:
    weights_EGT1 = jnp.moveaxis(weights_GTE, -1, 0)[..., None]
    return jnp.sum(y_EGTD * weights_EGT1, axis=0).astype(y_EGTD.dtype)

  return _even(place, x_GTD, send, back)


@_body('capacity')
def capacity(variant: Any, decision: Decision, x_GTD: jax.Array, place: Place) -> Moved:
  """place.capacity rows for each expert in each group."""
  if isinstance(decision, Soft):
    return _mixtures(decision, x_GTD, place)
  if isinstance(decision, ExpertChoice):
    return _chosen(decision, x_GTD, place)
  places = partial(
    by_capacity, experts=place.experts, capacity=place.capacity, priority=variant.priority
  )
  _, send, back, dropped = _there_and_back(decision, place.experts, places, (place.experts, -1))
  return _even(place, x_GTD, send, back, dropped)


@_body('expert_parallel')
def expert_parallel(variant: Any, decision: Decision, x_GTD: jax.Array, place: Place) -> Moved:
  """As `capacity`; rows go to the devices that hold their experts and back, all-to-all each way."""
  near = capacity(variant, decision, x_GTD, place)

  def go(z_EGCF: jax.Array) -> jax.Array:
    return shard(_at_home(z_EGCF), 'EGCF')

  return near._replace(
    rows=go(near.rows),
    send=lambda z_GTF: go(near.send(z_GTF)),
    back=lambda y_EGCD: near.back(_at_home(shard(y_EGCD, 'EGCD'))),
  )


def _at_home(z_EGCF: jax.Array) -> jax.Array:
  """Laid out as the tokens are that rows were made of."""
  return shard(z_EGCF.swapaxes(0, 1), 'GECF').swapaxes(0, 1)


def _mixtures(decision: Soft, x_GTD: jax.Array, place: Place) -> Moved:
  def send(z_GTF: jax.Array) -> jax.Array:
    return product('gtf,gtec->egcf', z_GTF, decision.send_GTEC)

  def back(y_EGCD: jax.Array) -> jax.Array:
    return product('egcd,gtec->gtd', y_EGCD, decision.back_GTEC)

  return _even(place, x_GTD, send, back)


def _chosen(decision: ExpertChoice, x_GTD: jax.Array, place: Place) -> Moved:
  G = x_GTD.shape[0]
  E, C = place.experts, place.capacity
  token_GA = decision.tokens_GEC.reshape(G, E * C)

  def send(z_GTF: jax.Array) -> jax.Array:
    z_GAF = jnp.take_along_axis(z_GTF, token_GA[..., None], axis=1)
    return z_GAF.reshape(G, E, C, -1).swapaxes(0, 1)

  def back(y_EGCD: jax.Array) -> jax.Array:
    y_GECD = y_EGCD.swapaxes(0, 1) * decision.weights_GEC[..., None].astype(y_EGCD.dtype)
    group_G1 = jnp.arange(G)[:, None]
    return jnp.zeros_like(x_GTD).at[group_G1, token_GA].add(y_GECD.reshape(G, E * C, -1))

  return _even(place, x_GTD, send, back)


# --- As many rows as tokens choose.


def _there_and_back(
  decision: TokenChoice, experts: int, places: Callable[..., Places], shape: tuple[int, ...]
) -> tuple[Places, Callable, Callable, jax.Array]:
  """Places, and `send`, `back` and `dropped` of Moved, where each choice has a row of its own.

  Every device sorts what it holds: all is done for each of the G shares of the batch by itself.
  Rows are of `shape`, whose last dimension but D is behind a dimension G.
  """
  groups, T, R = decision.experts_GTR.shape
  G, axis = shares(groups), len(shape) - 1
  local = jax.tree.map(lambda z: z.reshape(G, groups // G, T, R), decision)
  found = jax.vmap(places)(*local)
  tokens, rows = groups // G * T, found.choice_M.shape[1]
  row_GTR = found.row_A.reshape(G, tokens, R)

  def send(z_GTF: jax.Array) -> jax.Array:
    z_GTF = z_GTF.reshape(G, tokens, -1)
    z_GMF = jax.vmap(take)(z_GTF, found.choice_M // R, row_GTR)
    return jnp.moveaxis(z_GMF.reshape(G, *shape, z_GMF.shape[-1]), 0, axis)

  def back(y: jax.Array) -> jax.Array:
    y_GMD = jnp.moveaxis(y, axis, 0).reshape(G, rows, y.shape[-1])
    y_GAD = jax.vmap(take)(y_GMD, found.row_A, found.choice_M[..., None])
    y_GTRD = y_GAD.reshape(groups, T, R, -1)
    return jnp.sum(y_GTRD * decision.weights_GTR[..., None].astype(y.dtype), axis=2)

  lost_GTR = (row_GTR >= rows) & (local.experts_GTR.reshape(row_GTR.shape) < experts)
  return found, send, back, jnp.sum(lost_GTR)


@_body('dropless')
def dropless(variant: Any, decision: Decision, x_GTD: jax.Array, place: Place) -> Moved:
  """rows_GMD sorted by expert, as many as each has."""
  groups, T, R = decision.experts_GTR.shape
  G = shares(groups)
  block = block_rows(groups // G * T * R, place.experts)

  def places(experts_GTR: jax.Array, _: jax.Array) -> Places:
    return by_blocks(experts_GTR.reshape(-1), place.experts, block)

  found, send, back, dropped = _there_and_back(decision, place.experts, places, (-1,))

  def multiply(_: str, x_GMD: jax.Array, w_EDF: jax.Array) -> jax.Array:
    def of_share(x_MD: jax.Array, w_EDF: jax.Array, own: Groups) -> jax.Array:
      return grouped(x_MD, w_EDF, own, block, place.product)

    if G == 1:  # kernels of accelerators need not know of vmap
      return of_share(x_GMD[0], w_EDF, jax.tree.map(lambda z: z[0], found.groups))[None]
    w_GEDF = jnp.broadcast_to(w_EDF, (G, *w_EDF.shape))  # what `ragged` needs under vmap
    return jax.vmap(of_share)(x_GMD, w_GEDF, found.groups)

  def spread(leaf_EF: jax.Array) -> jax.Array:
    rows = found.choice_M.shape[1]
    expert_GM = jax.vmap(lambda own: expert_of_rows(own, rows, block))(found.groups)
    return leaf_EF[jnp.minimum(expert_GM, place.experts - 1)]

  return Moved(send(x_GTD), multiply, spread, send, back, dropped)
