"""Logits and cross-entropy of them, together, so that few logits exist at a time."""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from transformer.ops.attention import soft_cap
from transformer.ops.backend import alone
from transformer.ops.cast import cast, turned
from transformer.ops.product import into_float32, product

_LOGITS, _MORE = 2**22, 2**26  # held at a time: of a CPU's cache, of an accelerator's memory
_LEAST = 2**16  # with fewer, parts take longer to compile than they save


@flax.struct.dataclass
class Unembedding:
  """What logits are made of: cap(x · tableᵀ + bias), see `attention.soft_cap`.

  x_BTD: the last stream, in the compute type. table_VD, bias_V: float32; the bias may be None.
  """

  x_BTD: jax.Array
  table_VD: jax.Array
  bias_V: jax.Array | None
  cap: float = flax.struct.field(pytree_node=False, default=0.0)

  def logits(self) -> jax.Array:
    """All of them, float32 logits_BTV."""
    logits_BTV = product('btd,vd->btv', self.x_BTD, self.table_VD, out='float32')
    return finished(logits_BTV, self.bias_V, self.cap)


def finished(logits: jax.Array, bias_V: jax.Array | None, cap: float) -> jax.Array:
  """Products with the table as logits: with the bias, and bounded by `cap` where it is above 0."""
  return soft_cap(logits if bias_V is None else logits + bias_V, cap)


def is_fused(rows: int, vocabulary: int) -> bool:
  """Whether `sums` is meant to be used: on a mesh the compiler shares out whole logits better.

  Few logits are not worth it.
  """
  return rows * vocabulary >= _LEAST and alone()


def sums(
  made_of: Unembedding,
  targets_BT: jax.Array,
  weights_BT: jax.Array,
  label_smoothing: float = 0.0,
  z_loss: jax.typing.ArrayLike = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """(Σ w · objective, Σ −w log p(target)) as `loss.sums` of the logits; the latter is a constant.

  Rows are done in parts, each with its share of the gradient at once, so that backward computes
  nothing and needs no logits. Without differentiation no gradient is made.
  """
  x_MD = made_of.x_BTD.reshape(-1, made_of.x_BTD.shape[-1])
  bias_V = jnp.zeros(len(made_of.table_VD)) if made_of.bias_V is None else made_of.bias_V
  targets_M, weights_M = jnp.maximum(targets_BT, 0).reshape(-1), weights_BT.reshape(-1)
  z = jnp.asarray(z_loss, jnp.float32)
  how = label_smoothing, made_of.cap
  total, nats = _sums(x_MD, made_of.table_VD, bias_V, targets_M, weights_M, z, *how)
  return total, lax.stop_gradient(nats)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _sums(
  x_MD: jax.Array,
  table_VD: jax.Array,
  bias_V: jax.Array,
  targets_M: jax.Array,
  weights_M: jax.Array,
  z_loss: jax.Array,
  smoothing: float,
  cap: float,
) -> tuple[jax.Array, jax.Array]:
  table_VD = cast(table_VD, x_MD.dtype)

  def part(told: tuple, rows: tuple) -> tuple[tuple, None]:
    x_MD, targets_M, weights_M = rows
    logits_MV = finished(_by_table(x_MD, table_VD), bias_V, cap)
    _, objective_M, nats_M = losses(logits_MV, targets_M, z_loss, smoothing)
    return (told[0] + weights_M @ objective_M, told[1] + weights_M @ nats_M), None

  zero = jnp.zeros((), jnp.float32)
  return _over_parts(part, (zero, zero), (x_MD, targets_M, weights_M), len(table_VD))[0]


def _forward(
  x_MD: jax.Array,
  table_VD: jax.Array,
  bias_V: jax.Array,
  targets_M: jax.Array,
  weights_M: jax.Array,
  z_loss: jax.Array,
  smoothing: float,
  cap: float,
) -> tuple:
  narrow_VD, V = cast(table_VD, x_MD.dtype), len(table_VD)

  def part(told: tuple, rows: tuple) -> tuple[tuple, jax.Array]:
    total, nats, dtable_DV, dbias_V = told
    x_MD, targets_M, weights_M = rows
    logits_MV = finished(_by_table(x_MD, narrow_VD), bias_V, cap)
    log_z_M, objective_M, nats_M = losses(logits_MV, targets_M, z_loss, smoothing)
    probs_MV = jnp.exp(logits_MV - log_z_M[:, None])
    hit_MV = jnp.arange(V) == targets_M[:, None]
    # d log Z = p; the target's share and the uniform one are taken off, log² Z pulls as well.
    dlogits_MV = probs_MV * (1.0 + 2.0 * z_loss * log_z_M)[:, None]
    dlogits_MV -= jnp.where(hit_MV, 1.0 - smoothing, 0.0) + smoothing / V
    if cap:
      dlogits_MV *= 1.0 - jnp.square(logits_MV / cap)
    dlogits_MV *= weights_M[:, None]
    dbias_V += jnp.sum(dlogits_MV, axis=0)
    dlogits_MV = cast(dlogits_MV, x_MD.dtype)
    dx_MD = into_float32('mv,vd->md', dlogits_MV, narrow_VD)
    dtable_DV += into_float32('dm,mv->dv', turned(x_MD), dlogits_MV)
    told = total + weights_M @ objective_M, nats + weights_M @ nats_M, dtable_DV, dbias_V
    return told, cast(dx_MD, x_MD.dtype)

  zero = jnp.zeros((), jnp.float32)
  start = zero, zero, jnp.zeros(table_VD.shape[::-1], jnp.float32), jnp.zeros(V, jnp.float32)
  told, dx_MD = _over_parts(part, start, (x_MD, targets_M, weights_M), V)
  total, nats, dtable_DV, dbias_V = told
  return (total, nats), (dx_MD, turned(dtable_DV), dbias_V)


def _backward(smoothing: float, cap: float, grads: tuple, g: tuple) -> tuple:
  return *((g[0] * grad).astype(grad.dtype) for grad in grads), None, None, None


_sums.defvjp(_forward, _backward)


def _over_parts(part: object, start: tuple, rows: tuple, V: int) -> tuple:
  """(what `part` adds up, what it gives a row), a part of the rows after the other if many."""
  M = len(rows[0])
  held = _LOGITS if jax.default_backend() == 'cpu' else _MORE
  size = max(1, min(M, held // V))
  if size == M:
    return part(start, rows)
  parts, rest = divmod(M, size)
  cut = [x[: M - rest].reshape(parts, size, *x.shape[1:]) for x in rows]
  told, made = lax.scan(part, start, tuple(cut))
  made = made if made is None else made.reshape(M - rest, *made.shape[2:])
  if rest:
    told, last = part(told, tuple(x[M - rest :] for x in rows))
    made = made if made is None else jnp.concatenate([made, last])
  return told, made


def losses(
  logits: jax.Array, targets: jax.Array, z_loss: jax.typing.ArrayLike, smoothing: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(log Z, the objective, −log p(target)) of float32 logits (…, V) and targets (…), ids."""
  log_z = jax.nn.logsumexp(logits, axis=-1)
  hit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  nats = log_z - hit
  objective = nats + z_loss * jnp.square(log_z)
  if smoothing:  # (1 − ε) (log Z − hit) + ε (log Z − mean); reads all logits once more
    objective += smoothing * (hit - jnp.mean(logits, axis=-1))
  return log_z, objective, nats


def _by_table(x_MD: jax.Array, table_VD: jax.Array) -> jax.Array:
  return into_float32('md,vd->mv', x_MD, table_VD)
