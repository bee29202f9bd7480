"""Products of rows that are sorted by expert with the matrix of each row's own expert.

Groups may have any size. Those of the loop fill whole blocks of rows, so that each block meets one
matrix; which implementation runs is chosen by backend, after it has been held against `reference`
at the run's own shapes.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from transformer.ops.product import Product, product

_MOST = 128  # rows of a block


class Groups(NamedTuple):
  """Where the rows of each expert lie: from row begin_E on as many blocks as blocks_E."""

  begin_E: jax.Array
  blocks_E: jax.Array


def block_rows(rows: int, experts: int) -> int:
  """Rows of a block for `rows` shared out among experts: a power of 2 that wastes few of them."""
  block = 8
  while block < _MOST and 4 * block * experts <= rows:
    block *= 2
  return block


def reference(
  x_RD: jax.Array, w_EDF: jax.Array, groups: Groups, block: int, product: Product = product
) -> jax.Array:
  """Every row times every matrix, of which its expert's is taken; rows of no group give 0."""
  row_R = jnp.arange(x_RD.shape[0])[:, None]
  begin_E, end_E = groups.begin_E, groups.begin_E + block * groups.blocks_E
  own_RE = ((row_R >= begin_E) & (row_R < end_E)).astype(x_RD.dtype)
  y_ERF = product('rd,edf->erf', x_RD, w_EDF)
  return product('erf,re->rf', y_ERF, own_RE)


def ragged(
  x_RD: jax.Array, w_EDF: jax.Array, groups: Groups, block: int, product: Product
) -> jax.Array:
  """XLA's own, for accelerators. Rows behind the last group give 0."""
  sizes_E = block * groups.blocks_E
  return lax.ragged_dot(x_RD, w_EDF.astype(x_RD.dtype), sizes_E)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def looped(
  x_RD: jax.Array, w_EDF: jax.Array, groups: Groups, block: int, product: Product = product
) -> jax.Array:
  """For CPU: a loop over experts, and for each over its blocks, whose products stay in cache."""
  return _by_block('rd,df->rf', x_RD, w_EDF, groups, block, product)


def _forward(
  x_RD: jax.Array, w_EDF: jax.Array, groups: Groups, block: int, product: Product
) -> tuple:
  return looped(x_RD, w_EDF, groups, block, product), (x_RD, w_EDF, groups)


def _backward(block: int, product: Product, kept: tuple, g_RF: jax.Array) -> tuple:
  x_RD, w_EDF, groups = kept
  dx_RD = _by_block('rf,df->rd', g_RF, w_EDF, groups, block, product)

  def of_expert(_: None, own: Groups) -> tuple[None, jax.Array]:
    def add(i: jax.Array, sum_DF: jax.Array) -> jax.Array:
      at = own.begin_E + i * block
      some = (lax.dynamic_slice_in_dim(z, at, block) for z in (x_RD, g_RF))
      return sum_DF + product('rd,rf->df', *some, out='float32')

    return None, lax.fori_loop(0, own.blocks_E, add, jnp.zeros(w_EDF.shape[1:], jnp.float32))

  _, dw_EDF = lax.scan(of_expert, None, groups)
  return dx_RD, dw_EDF.astype(w_EDF.dtype), None


looped.defvjp(_forward, _backward)


def _by_block(
  spec: str, x_RD: jax.Array, w_EDF: jax.Array, groups: Groups, block: int, product: Product
) -> jax.Array:
  width = w_EDF.shape[1 + 'df'.index(spec[-1])]

  def of_expert(y_RF: jax.Array, own: tuple) -> tuple[jax.Array, None]:
    w_DF, (begin, blocks) = own

    def put(i: jax.Array, y_RF: jax.Array) -> jax.Array:
      at = begin + i * block
      y = product(spec, lax.dynamic_slice_in_dim(x_RD, at, block), w_DF).astype(x_RD.dtype)
      return lax.dynamic_update_slice_in_dim(y_RF, y, at, 0)

    return lax.fori_loop(0, blocks, put, y_RF), None

  y_RF = jnp.zeros((x_RD.shape[0], width), x_RD.dtype)
  return lax.scan(of_expert, y_RF, (w_EDF, groups))[0]


def grouped(
  x_RD: jax.Array, w_EDF: jax.Array, groups: Groups, block: int, product: Product = product
) -> jax.Array:
  """Each row of x times its expert's matrix, y_RF in the type of x; rows of no group give 0."""
  chosen = looped if jax.default_backend() == 'cpu' else ragged
  return chosen(x_RD, w_EDF, groups, block, product)
