"""Every matrix product of the model goes through here: the one place for a faster one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from transformer.ops.backend import lone_cpu
from transformer.ops.cast import cast, turned

Product = Callable[..., jax.Array]  # (spec, x, w) -> einsum, as `product`
_LEAST = 2**12  # entries of a weight: smaller products take longer to compile than they save
_WIDE = 512  # from this many columns on, turning the narrower operand costs less than it saves


def product(spec: str, x: jax.Array, w: jax.Array, out: str | None = None) -> jax.Array:
  """einsum(spec, x, w) of operands in the type of `x`.

  spec: an einsum of two operands in shape letters, as in 'btd,df->btf'.
  The weight is cast to the compute type here, so master weights stay float32.
  out: type of the result, that of `x` unless given; float32 keeps what bfloat16 would round away.

  On a lone CPU a linear map of rows is computed as `linear` does, unless it is tiny; else as
  `reference`, but that gradients of a wider result are computed in the operands' type.
  """
  x, w = jnp.asarray(x), jnp.asarray(w)  # of NumPy's, jax's own maps take none
  out_type = jnp.dtype(out or x.dtype)
  if w.size < _LEAST or not lone_cpu() or (form := _form(spec)) is None:
    same = out_type == x.dtype
    return reference(spec, x, w) if same else _widened(spec, x, cast(w, x.dtype), out_type)
  sizes = dict(zip(spec.partition(',')[0], x.shape, strict=True))
  into = spec.partition(',')[2].partition('->')[0]
  sizes |= zip(into, w.shape, strict=True)
  K = prod(sizes[c] for c in form.contracted)
  each = x.shape[: form.each]

  def multiply(x_MK: jax.Array, w: jax.Array) -> jax.Array:
    return linear(x_MK, w, out_type, form.weight_last)

  y = (jax.vmap(multiply) if each else multiply)(x.reshape(*each, -1, K), w)
  return y.reshape(*(sizes[c] for c in form.out))


def reference(spec: str, x: jax.Array, w: jax.Array, out: str | None = None) -> jax.Array:
  """The same by XLA's own einsum, forward and backward."""
  return jnp.einsum(spec, x, cast(w, x.dtype), preferred_element_type=out or x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _widened(spec: str, a: jax.Array, b: jax.Array, out_type: jnp.dtype) -> jax.Array:
  return jnp.einsum(spec, a, b, preferred_element_type=out_type)


def _widened_backward(spec: str, out_type: jnp.dtype, kept: tuple, g: jax.Array) -> tuple:
  """Autodiff of the einsum as it is would multiply mixed types, in float32 at its slow rate."""
  a, b = kept
  g = cast(g, a.dtype)
  (da,) = jax.linear_transpose(lambda a: jnp.einsum(spec, a, b), a)(g)
  (db,) = jax.linear_transpose(lambda b: jnp.einsum(spec, a, b), b)(g)
  return da, db


_widened.defvjp(
  lambda spec, a, b, out_type: (_widened(spec, a, b, out_type), (a, b)), _widened_backward
)


def by_weight(spec: str, x: jax.Array, w: jax.Array, out: str = 'float32') -> jax.Array:
  """einsum(spec, x, w) of operands in the type of the weight, float32 unless told.

  For programs without a backward pass, whose gradient would be of mixed types: XLA on CPU
  multiplies bfloat16 into float32 twice as fast as into bfloat16.
  """
  return product(spec, x.astype(w.dtype), w, out)


class Form(NamedTuple):
  """A linear map of rows, by letters.

  weight_last: the weight's last dimensions are summed over. each: 1 where the first dimension of
  both operands counts maps, as of experts.
  """

  contracted: str
  out: str
  weight_last: bool
  each: int


@functools.cache
def _form(spec: str) -> Form | None:
  """How a product is a linear map of the rows of x; None if it is not one as the arrays lie."""
  inputs, _, out = spec.partition('->')
  x, _, w = inputs.partition(',')
  whole, each = out, int(x[0] == w[0] == out[0])
  x, w, out = x[each:], w[each:], out[each:]
  contracted = ''.join(c for c in x if c in w and c not in out)
  kept, new = x.removesuffix(contracted), ''.join(c for c in w if c not in contracted)
  if not contracted or not kept or kept + contracted != x or kept + new != out:
    return None
  if w == contracted + new:
    return Form(contracted, whole, False, each)
  return Form(contracted, whole, True, each) if w == new + contracted else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def linear(x_MK: jax.Array, w: jax.Array, out_type: jnp.dtype, weight_last: bool) -> jax.Array:
  """x w, (M, N), of a weight (K, N), or (N, K) where its last dimensions are summed over.

  Each of K and N may be several dimensions of the weight. For backward the weight is kept as it is:
  of a loop over layers, one of another type or shape would be a copy of all of them.

  Operands in the type of x, sums in float32, also those of both gradients: XLA on CPU multiplies
  bfloat16 into float32 twice as fast as into bfloat16, and autodiff would multiply mixed types.
  """
  matrix = _matrix(w, x_MK, weight_last)
  return cast(_dot(x_MK, matrix, 1, int(weight_last)), out_type)


def _matrix(w: jax.Array, x_MK: jax.Array, weight_last: bool) -> jax.Array:
  """(K, N), or (N, K), in the type of x."""
  K = x_MK.shape[1]
  return cast(w.reshape((-1, K) if weight_last else (K, -1)), x_MK.dtype)


def _linear_backward(out_type: jnp.dtype, weight_last: bool, kept: tuple, g_MN: jax.Array) -> tuple:
  x_MK, w = kept
  g_MN = cast(g_MN, x_MK.dtype)
  matrix = _matrix(w, x_MK, weight_last)
  dx_MK = cast(_dot(g_MN, matrix, 1, 1 - int(weight_last)), x_MK.dtype)
  dw = across(g_MN, x_MK) if weight_last else across(x_MK, g_MN)
  return dx_MK, cast(dw.reshape(w.shape), w.dtype)


linear.defvjp(lambda x, w, *to: (linear(x, w, *to), (x, w)), _linear_backward)


def across(a_MK: jax.Array, b_MN: jax.Array) -> jax.Array:
  """Σ_m a_mk b_mn, (K, N) in float32: a weight's gradient.

  The narrower operand is turned first, as a sum over leading dimensions is slow on CPU.
  """
  K, N = a_MK.shape[1], b_MN.shape[1]
  if max(K, N) < _WIDE and a_MK.dtype == jnp.float32:
    return _dot(a_MK, b_MN, 0, 0)
  if K <= N:
    return _dot(turned(a_MK), b_MN, 1, 0)
  return turned(_dot(turned(b_MN), a_MK, 1, 0))


def _dot(a: jax.Array, b: jax.Array, over_a: int, over_b: int) -> jax.Array:
  """Of matrices, summed over one dimension of each, in float32."""
  dims = (((over_a,), (over_b,)), ((), ()))
  return lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def into_float32(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
  """einsum(spec, a, b) of arrays of one type, in float32; for what has a gradient of its own."""
  return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)
