"""Bodies of the activations declared in config/variants.py.

A plain activation is a function of up(x); a gated one of gate(x) and up(x), both (…, F). The
declared arguments follow by name.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

BODIES: dict[str, Callable[..., jax.Array]] = {}


def body(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Decorator: registers a function under its own name."""
  BODIES[function.__name__] = function
  return function


@body
def relu(x: jax.Array) -> jax.Array:
  """max(x, 0) (Nair & Hinton 2010). Its gradient at 0 is 0."""
  return jax.nn.relu(x)


@body
def gelu(x: jax.Array) -> jax.Array:
  """x Φ(x) with the exact normal distribution function (Hendrycks & Gimpel 2016)."""
  # jax.nn.gelu goes through erfc, which halves the speed of a small model's step on CPU.
  return 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))


@body
def silu(x: jax.Array) -> jax.Array:
  """x σ(x) (Elfwing et al. 2017), also called Swish-1 (Ramachandran et al. 2017)."""
  return jax.nn.silu(x)


@body
def relu2(x: jax.Array) -> jax.Array:
  """max(x, 0)² (So et al. 2021, Primer, §4)."""
  return jnp.square(jax.nn.relu(x))


@body
def identity(x: jax.Array) -> jax.Array:
  """x: up and down are then one linear map, the yardstick for what a nonlinearity adds."""
  return x


@body
def geglu(gate: jax.Array, up: jax.Array) -> jax.Array:
  """GELU(gate) ⊙ up (Shazeer 2020, eq. 6)."""
  return gelu(gate) * up


@body
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
  """SiLU(gate) ⊙ up (Shazeer 2020, eq. 6)."""
  return silu(gate) * up
