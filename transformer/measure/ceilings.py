"""What the machine can do at most: matrix products by type and shape, and memory traffic.

One device is measured. Where devices are forced on a CPU they share its cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

Shape = tuple[int, int, int]  # rows, contracted, columns
TYPES = (('float32', 'float32'), ('bfloat16', 'float32'), ('bfloat16', 'bfloat16'))
_SQUARE = {'cpu': 1024}
_BANDWIDTH_BYTES = {'cpu': 2**28}


def ceilings(shapes: Iterable[Shape], seconds: float) -> dict:
  """GFLOP/s by 'operands->result' and shape ('1024x1024x1024'), and GB/s of memory.

  seconds: for each of them.

  Measured at a large square product and at `shapes`, each the best of several. A product that the
  backend cannot run is left out.
  """
  backend = jax.default_backend()
  n = _SQUARE.get(backend, 8192)
  wanted = dict.fromkeys([(n, n, n), *shapes])
  found: dict[str, dict[str, float]] = {}
  for operands, result in TYPES:
    rates = {'x'.join(map(str, s)): _rate(s, operands, result, seconds) for s in wanted}
    if ran := {shape: rate for shape, rate in rates.items() if rate}:
      found[f'{operands}->{result}'] = ran
  return {'matmul_gflops': found, 'memory_gb_per_s': _bandwidth(backend, seconds)}


def _rate(shape: Shape, operands: str, result: str, seconds: float) -> float:
  rows, inner, columns = shape
  a = jax.random.normal(jax.random.key(0), (rows, inner), jnp.float32).astype(operands)
  b = jax.random.normal(jax.random.key(1), (inner, columns), jnp.float32).astype(operands)
  product = jax.jit(lambda x, y: jnp.matmul(x, y, preferred_element_type=result))
  try:
    fastest = _fastest(lambda: product(a, b), seconds)
  except jax.errors.JaxRuntimeError:
    return 0.0
  return 2 * rows * inner * columns / fastest / 1e9


def _bandwidth(backend: str, seconds: float) -> float:
  """Of reading and writing an array in place."""
  size = _BANDWIDTH_BYTES.get(backend, 2**31)
  x = jnp.zeros(size // 4, jnp.float32)
  add = jax.jit(lambda x: x + 1, donate_argnums=0)

  def go() -> jax.Array:
    nonlocal x
    x = add(x)
    return x

  return 2 * size / _fastest(go, seconds) / 1e9


def _fastest(go: Callable[[], jax.Array], seconds: float) -> float:
  jax.block_until_ready(go())
  best, begin = float('inf'), time.perf_counter()
  while time.perf_counter() - begin < seconds:
    start = time.perf_counter()
    jax.block_until_ready(go())
    best = min(best, time.perf_counter() - start)
  return best
