"""Where a program runs, which decides the implementation that its operations take."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax

from transformer import axes


def mesh_axes() -> dict[str, int]:
  """Axis -> size of the current mesh; {} without one."""
  mesh = jax.sharding.get_abstract_mesh()
  return {name: mesh.shape[name] for name in mesh.axis_names if name in axes.MESH_AXES}


_LEAST = 2**9  # entries from which on it pays to keep what is made of them
_plain = False


def alone() -> bool:
  """Whether arrays are whole on their device: no mesh of several, or a share under pmap.

  On a mesh the compiler lays out plain operations better than blocks of our own. False after
  `keep_plain`, too.
  """
  return not _plain and math.prod(mesh_axes().values()) == 1


def keep_plain() -> None:
  """From now on this process takes references alone: what replaces them does not run here."""
  global _plain
  _plain = True


def lone_cpu() -> bool:
  """Whether arrays are whole on a CPU."""
  return jax.default_backend() == 'cpu' and alone()


def once(function: Callable[[jax.Array], Any], x: jax.Array) -> Any:
  """`function` of each row of x, computed once and kept.

  XLA on CPU would compute it again in each loop that reads it, sines in all layers. What a loop
  makes it takes as given.
  """
  apart = x.size >= _LEAST and lone_cpu()
  return jax.lax.map(function, x) if apart else jax.vmap(function)(x)
