"""Whether an implementation runs here, and computes what its reference does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np

_OFF = {'float32': 1e-3, 'bfloat16': 0.05}  # of the largest entry: further off is wrong


def difference(
  found: Callable[..., Sequence[jax.Array]],
  right: Callable[..., Sequence[jax.Array]],
  given: Sequence[jax.Array],
  names: Sequence[str],
  dtype: str,
) -> str:
  """Why `found` cannot stand for `right`; empty if it can.

  Both make arrays, called by `names`, of those `given`: compiled and run here. Arrays that they
  close over would be constants, whose products XLA may spend seconds on while it compiles.
  dtype: that they compute in.
  """
  try:
    got = jax.device_get(_compiled(found)(*given))
  except Exception as e:  # whatever a kernel, its compiler or its absence raises
    return str(e).partition('\n')[0][:160] or type(e).__name__
  for name, ours, theirs in zip(names, got, jax.device_get(_compiled(right)(*given)), strict=True):
    ours, theirs = np.float32(ours), np.float32(theirs)
    off = float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))
    if not off < _OFF[dtype]:
      return f'its {name} is off by {off:.1e}'
  return ''


def _compiled(function: Callable) -> Callable:
  """On CPU without optimization, which would take longer than it saves."""
  quick = {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else None
  return jax.jit(function, compiler_options=quick)
