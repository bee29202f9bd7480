"""Where the choices of tokens stand among the rows of experts, and moves whose gradients gather."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer.ops.grouped import Groups


class Places(NamedTuple):
  """Which choice stands in which row: each of the two tells the other.

  Choices A are numbered by token, then by rank. row_A: of each choice; as many as there are rows M
  where it has none. choice_M: of each row; as many as there are choices where it is empty. groups:
  which rows are whose, where experts have more or fewer of them.
  """

  row_A: jax.Array
  choice_M: jax.Array
  groups: Groups | None = None


@jax.custom_vjp
def take(x_ND: jax.Array, index_M: jax.Array, inverse_NR: jax.Array) -> jax.Array:
  """Rows of x, (M, D); 0 where there is no such row.

  inverse_NR: the places, R at most, where each row of x went: from there its gradient is gathered
  and added up, where that of a plain look-up would be scattered.
  """
  return _rows(x_ND, index_M)


def _rows(x_ND: jax.Array, index_M: jax.Array) -> jax.Array:
  return jnp.take(x_ND, index_M, axis=0, mode='fill', fill_value=0)


def _take_forward(x_ND: jax.Array, index_M: jax.Array, inverse_NR: jax.Array) -> tuple:
  return _rows(x_ND, index_M), inverse_NR


def _take_backward(inverse_NR: jax.Array, g_MD: jax.Array) -> tuple:
  parts = [_rows(g_MD, inverse_NR[:, r]) for r in range(inverse_NR.shape[1])]
  return sum(parts[1:], parts[0]), None, None


take.defvjp(_take_forward, _take_backward)


def by_capacity(
  experts_GTR: jax.Array, weights_GTR: jax.Array, experts: int, capacity: int, priority: str
) -> Places:
  """`capacity` rows for each expert in each group, numbered by expert, group, place.

  experts_GTR: an expert each, `experts` for none. priority: as of moe.dispatch=capacity.
  """
  G, T, R = experts_GTR.shape
  expert_GA, number_A = experts_GTR.reshape(G, T * R), jnp.arange(T * R)
  first = {
    'order': number_A,
    'choice': (number_A % R) * T + number_A // R,
    'score': -weights_GTR.reshape(G, T * R),
  }[priority]
  sorted_GA = jnp.lexsort((jnp.broadcast_to(first, expert_GA.shape), expert_GA), axis=-1)
  count_GE, start_GE = _counted(expert_GA, experts)
  own_GA = jnp.minimum(expert_GA, experts - 1)
  place_GA = jnp.argsort(sorted_GA, axis=-1) - jnp.take_along_axis(start_GE, own_GA, axis=1)
  group_G1, place_C = jnp.arange(G)[:, None], jnp.arange(capacity)
  row_GA = (expert_GA * G + group_G1) * capacity + place_GA
  has_one_GA = (expert_GA < experts) & (place_GA < capacity)
  choice_GEC = _at(sorted_GA, start_GE[..., None] + place_C) + group_G1[..., None] * (T * R)
  choice_GEC = jnp.where(place_C < count_GE[..., None], choice_GEC, G * T * R)
  return Places(
    jnp.where(has_one_GA, row_GA, experts * G * capacity).reshape(-1),
    choice_GEC.swapaxes(0, 1).reshape(-1),
  )


def by_blocks(expert_A: jax.Array, experts: int, block: int) -> Places:
  """All choices sorted by expert, the rows of each filled up to whole blocks.

  expert_A: an expert each, `experts` for none.
  """
  choices = expert_A.shape[0]
  rows = rows_in_blocks(choices, experts, block)
  sorted_A = jnp.argsort(expert_A)
  count_E, start_E = (z_GE[0] for z_GE in _counted(expert_A[None], experts))
  blocks_E = -(-count_E // block)
  groups = Groups(block * (jnp.cumsum(blocks_E) - blocks_E), blocks_E)
  own_A = jnp.minimum(expert_A, experts - 1)
  row_A = groups.begin_E[own_A] - start_E[own_A] + jnp.argsort(sorted_A)
  expert_M = expert_of_rows(groups, rows, block)
  own_M = jnp.minimum(expert_M, experts - 1)
  place_M = jnp.arange(rows) - groups.begin_E[own_M]
  filled_M = (expert_M < experts) & (place_M < count_E[own_M])
  choice_M = _at(sorted_A[None], (start_E[own_M] + place_M)[None])[0]
  return Places(
    jnp.where(expert_A < experts, row_A, rows), jnp.where(filled_M, choice_M, choices), groups
  )


def rows_in_blocks(choices: int, experts: int, block: int) -> int:
  """Rows M that hold so many choices however they fall."""
  return (choices // block + min(experts, choices)) * block


def expert_of_rows(groups: Groups, rows: int, block: int) -> jax.Array:
  """The expert of each row; as many as there are experts behind the last group."""
  end_E = groups.begin_E + block * groups.blocks_E
  by_block = jnp.searchsorted(end_E, jnp.arange(0, rows, block), side='right')
  return by_block.repeat(block)


def _counted(expert_GA: jax.Array, experts: int) -> tuple[jax.Array, jax.Array]:
  """How many choices each expert has in each group, and how many those before it have."""
  count_GE = jnp.sum(expert_GA[..., None] == jnp.arange(experts), axis=1)
  return count_GE, jnp.cumsum(count_GE, axis=1) - count_GE


def _at(values_GA: jax.Array, index: jax.Array) -> jax.Array:
  """values[g, index[g, …]]; of an index past the end the last."""
  inside = jnp.minimum(index, values_GA.shape[1] - 1).reshape(len(values_GA), -1)
  return jnp.take_along_axis(values_GA, inside, axis=1).reshape(index.shape)
