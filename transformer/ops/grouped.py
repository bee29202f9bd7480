"""Products of rows that are sorted by expert with the matrix of each row's own expert.

Groups may have any size; each fills whole blocks of rows, so that a block meets one matrix. What is
fastest differs by backend: `IMPLEMENTATIONS` are tried in order, and the first that agrees with
`reference` at the run's own shapes is taken (`settle`).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from transformer.ops.backend import lone_cpu
from transformer.ops.product import Product, across, product
from transformer.ops.settle import difference

_MOST = 128  # rows of a block


class Groups(NamedTuple):
  """Where the rows of each expert lie: from row begin_E on as many blocks as blocks_E."""

  begin_E: jax.Array
  blocks_E: jax.Array


class Shape(NamedTuple):
  """rows M in blocks, of width D, times experts' matrices D × F, in a type."""

  rows: int
  block: int
  experts: int
  D: int
  F: int
  dtype: str


def block_rows(rows: int, experts: int) -> int:
  """Rows of a block for `rows` shared out among experts: a power of 2 that wastes few of them."""
  block = 8
  while block < _MOST and 4 * block * experts <= rows:
    block *= 2
  return block


def reference(
  x_MD: jax.Array, w_EDF: jax.Array, groups: Groups, block: int, product: Product = product
) -> jax.Array:
  """Every row times every matrix, of which its expert's is taken; rows of no group give 0."""
  y_EMF = product('md,edf->emf', x_MD, w_EDF)
  return product('emf,me->mf', y_EMF, _own(groups, block, len(x_MD))).astype(x_MD.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def looped(
  x_MD: jax.Array, w_EDF: jax.Array, groups: Groups, block: int, product: Product = product
) -> jax.Array:
  """A loop over experts, and for each over its blocks: on CPU such products stay in cache."""
  return _by_block('md,df->mf', x_MD, w_EDF, groups, block, product)


def _forward(
  x_MD: jax.Array, w_EDF: jax.Array, groups: Groups, block: int, product: Product
) -> tuple:
  return looped(x_MD, w_EDF, groups, block, product), (x_MD, w_EDF, groups)


def _backward(block: int, product: Product, kept: tuple, g_MF: jax.Array) -> tuple:
  x_MD, w_EDF, groups = kept
  dx_MD = _by_block('mf,df->md', g_MF, w_EDF, groups, block, product)

  add_up = across if lone_cpu() else functools.partial(product, 'md,mf->df', out='float32')

  def of_expert(_: None, own: Groups) -> tuple[None, jax.Array]:
    def add(i: jax.Array, sum_DF: jax.Array) -> jax.Array:
      at = own.begin_E + i * block
      some = (lax.dynamic_slice_in_dim(z, at, block) for z in (x_MD, g_MF))
      return sum_DF + add_up(*some)

    return None, lax.fori_loop(0, own.blocks_E, add, jnp.zeros(w_EDF.shape[1:], jnp.float32))

  _, dw_EDF = lax.scan(of_expert, None, groups)
  return dx_MD, dw_EDF.astype(w_EDF.dtype), None


looped.defvjp(_forward, _backward)


def _by_block(
  spec: str, x_MD: jax.Array, w_EDF: jax.Array, groups: Groups, block: int, product: Product
) -> jax.Array:
  width = w_EDF.shape[1 + 'df'.index(spec[-1])]
  if w_EDF.dtype.itemsize > x_MD.dtype.itemsize:
    w_EDF = w_EDF.astype(x_MD.dtype)  # once, and not in each block

  def of_expert(y_MF: jax.Array, own: tuple) -> tuple[jax.Array, None]:
    w_DF, (begin, blocks) = own

    def put(i: jax.Array, y_MF: jax.Array) -> jax.Array:
      at = begin + i * block
      # Into float32, for XLA on CPU multiplies bfloat16 into bfloat16 at half the speed.
      y = product(spec, lax.dynamic_slice_in_dim(x_MD, at, block), w_DF, out='float32')
      return lax.dynamic_update_slice_in_dim(y_MF, y.astype(x_MD.dtype), at, 0)

    return lax.fori_loop(0, blocks, put, y_MF), None

  y_MF = jnp.zeros((x_MD.shape[0], width), x_MD.dtype)
  return lax.scan(of_expert, y_MF, (w_EDF, groups))[0]


def ragged(
  x_MD: jax.Array, w_EDF: jax.Array, groups: Groups, block: int, product: Product = product
) -> jax.Array:
  """XLA's own (jax.lax.ragged_dot). On CPU ten times slower than the loop."""
  return lax.ragged_dot(x_MD, w_EDF.astype(x_MD.dtype), block * groups.blocks_E)


def tokamax(
  x_MD: jax.Array, w_EDF: jax.Array, groups: Groups, block: int, product: Product = product
) -> jax.Array:
  """Mosaic or Triton kernels of the library of that name, where it is installed."""
  from tokamax import ragged_dot

  sizes_E = block * groups.blocks_E
  return ragged_dot(x_MD, w_EDF.astype(x_MD.dtype), sizes_E, implementation=('mosaic', 'triton'))


def megablox(
  x_MD: jax.Array, w_EDF: jax.Array, groups: Groups, block: int, product: Product = product
) -> jax.Array:
  """JAX's Pallas kernels for TPU (after Gale et al. 2023, MegaBlocks)."""
  from jax.experimental.pallas.ops.tpu.megablox import gmm

  y_MF = gmm(x_MD, w_EDF.astype(x_MD.dtype), block * groups.blocks_E, x_MD.dtype)
  used = block * jnp.sum(groups.blocks_E)
  return jnp.where(jnp.arange(len(x_MD))[:, None] < used, y_MF, 0)


Implementation = Callable[..., jax.Array]
IMPLEMENTATIONS: dict[str, tuple[Implementation, ...]] = {
  'cpu': (looped, reference),
  'gpu': (tokamax, ragged, looped),
  'tpu': (megablox, ragged, looped),
}
_SETTLED: dict[Shape, Implementation] = {}


def grouped(
  x_MD: jax.Array, w_EDF: jax.Array, groups: Groups, block: int, product: Product = product
) -> jax.Array:
  """Each row of x times its expert's matrix, y_MF in the type of x; rows of no group give 0.

  By the implementation that `settle` found for this shape; without it by one that runs everywhere.
  """
  shape = Shape(len(x_MD), block, *w_EDF.shape, str(x_MD.dtype))
  return _SETTLED.get(shape, looped)(x_MD, w_EDF, groups, block, product)


def settle(shape: Shape) -> str:
  """Finds the implementation for products of this shape, and returns its name.

  One that cannot run, or differs from the reference in value or gradient, is passed over, with a
  line that says so.
  """
  if shape not in _SETTLED:
    known = IMPLEMENTATIONS.get(jax.default_backend(), (looped,))
    for implementation in known:
      if reason := _refusal(shape, implementation):
        print(f'grouped product {implementation.__name__}: not used: {reason}', file=sys.stderr)
        continue
      _SETTLED[shape] = implementation
      break
    else:
      raise RuntimeError(f'no grouped product of {jax.default_backend()} is right at {shape}')
  return _SETTLED[shape].__name__


def _refusal(shape: Shape, implementation: Implementation) -> str:
  """Why an implementation cannot be used; empty if it can.

  With uneven groups, one of them empty, the rest filling all rows but the last block: some rows of
  the product and of the gradient by x, and every matrix of the gradient by w times a vector.
  """
  groups, at_S = _uneven(shape), jnp.linspace(0, shape.rows - 1, 256).astype(int)
  keys = jax.random.split(jax.random.key(0), 4)
  given = (
    jax.random.normal(keys[0], (shape.rows, shape.D), shape.dtype),
    jax.random.normal(keys[1], (shape.rows, shape.F), shape.dtype),
    jax.random.normal(keys[2], shape[2:5]),
    jax.random.normal(keys[3], (shape.F,)),
  )

  def seen(x_MD, g_MF, w_EDF, v_F) -> tuple[jax.Array, ...]:
    y_MF, back = jax.vjp(lambda x, w: implementation(x, w, groups, shape.block), x_MD, w_EDF)
    dx_MD, dw_EDF = back(g_MF)
    return y_MF[at_S], dx_MD[at_S], product('edf,f->ed', dw_EDF, v_F)

  def expected(x_MD, g_MF, w_EDF, v_F) -> tuple[jax.Array, ...]:
    own_ME = _own(groups, shape.block, shape.rows)
    own_SE, x_SD, g_SF = own_ME[at_S], x_MD[at_S], g_MF[at_S]
    y_SEF = product('sd,edf->sef', x_SD.astype(jnp.float32), w_EDF)
    dx_SED = product('sf,edf->sed', g_SF.astype(jnp.float32), w_EDF)
    u_M1 = product('mf,f->m', g_MF.astype(jnp.float32), v_F)[:, None]
    dwv_ED = product('md,me->ed', u_M1 * x_MD, own_ME)
    return product('sef,se->sf', y_SEF, own_SE), product('sed,se->sd', dx_SED, own_SE), dwv_ED

  names = ('value', 'gradient by x', 'gradient by w')
  reason = difference(seen, expected, given, names, shape.dtype)
  return reason and f'{reason} at {shape.rows} x {shape.D} x {shape.F}'


def _uneven(shape: Shape) -> Groups:
  """Groups that grow with the number of the expert, the first one empty."""
  blocks, weight_E = shape.rows // shape.block - 1, np.arange(shape.experts)
  weight_E = weight_E if len(weight_E) > 1 else np.ones(1)
  blocks_E = jnp.asarray(np.floor(blocks * weight_E / np.sum(weight_E)), jnp.int32)
  return Groups(shape.block * (jnp.cumsum(blocks_E) - blocks_E), blocks_E)


def _own(groups: Groups, block: int, rows: int) -> jax.Array:
  """1 where a row is an expert's, float32 (M, E)."""
  row_M1, end_E = jnp.arange(rows)[:, None], groups.begin_E + block * groups.blocks_E
  return ((row_M1 >= groups.begin_E) & (row_M1 < end_E)).astype(jnp.float32)
