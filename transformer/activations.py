"""Bodies of the activations declared in config/activations.py.

A plain activation is a function of up(x); a gated one of gate(x) and up(x), both (…, F). The
declared arguments, and the arrays it owns, (F,), follow by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from transformer import spec

BODIES: dict[str, Callable[..., jax.Array]] = spec.bodies('ffn.activation')


def body(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Decorator: registers a function under its own name."""
  BODIES[function.__name__] = function
  return function


def activate(variant: Any, inputs: Sequence[jax.Array], leaves: dict[str, jax.Array]) -> jax.Array:
  """The activation of its projections.

  variant: a parsed variant of ffn.activation. inputs: as many as `variant.inputs`, (…, F).
  leaves: its parameters by the names of `variant.leaves`, (F,).
  """
  own = {
    leaf.removeprefix(f'{variant.variant}_'): leaves[leaf].astype(inputs[0].dtype)
    for leaf in variant.leaves
  }
  return BODIES[variant.variant](*inputs, **dataclasses.asdict(variant), **own)


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
def gelu_tanh(x: jax.Array) -> jax.Array:
  """x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))) (Hendrycks & Gimpel 2016, §2)."""
  return jax.nn.gelu(x, approximate=True)


@body
def silu(x: jax.Array) -> jax.Array:
  """x σ(x) (Elfwing et al. 2017), also called Swish-1 (Ramachandran et al. 2017)."""
  return jax.nn.silu(x)


@body
def relu2(x: jax.Array) -> jax.Array:
  """max(x, 0)² (So et al. 2021, Primer, §4)."""
  return jnp.square(jax.nn.relu(x))


@body
def leaky_relu(x: jax.Array, slope: float) -> jax.Array:
  """x above 0, slope · x below (Maas et al. 2013)."""
  return jnp.where(x > 0, x, slope * x)


@body
def leaky_relu2(x: jax.Array, slope: float) -> jax.Array:
  """leaky_relu(x)²: x² above 0, slope² x² below."""
  return jnp.square(leaky_relu(x, slope))


@body
def sigmoid(x: jax.Array) -> jax.Array:
  """1 / (1 + e⁻ˣ) (Rumelhart et al. 1986)."""
  return jax.nn.sigmoid(x)


@body
def tanh(x: jax.Array) -> jax.Array:
  """tanh x (LeCun et al. 1998, Efficient BackProp, §4.4)."""
  return jnp.tanh(x)


@body
def elu(x: jax.Array, alpha: float) -> jax.Array:
  """x above 0, alpha (eˣ − 1) below (Clevert et al. 2016, eq. 15)."""
  return jax.nn.elu(x, alpha)


@body
def selu(x: jax.Array) -> jax.Array:
  """1.0507 · elu(x, 1.6733) (Klambauer et al. 2017, eq. 2)."""
  return jax.nn.selu(x)


@body
def softplus(x: jax.Array) -> jax.Array:
  """log(1 + eˣ) (Dugas et al. 2001)."""
  return jax.nn.softplus(x)


@body
def softplus2(x: jax.Array) -> jax.Array:
  """log(1 + eˣ)²: relu2 without its corner."""
  return jnp.square(jax.nn.softplus(x))


@body
def mish(x: jax.Array) -> jax.Array:
  """x tanh(log(1 + eˣ)) (Misra 2020)."""
  return x * jnp.tanh(jax.nn.softplus(x))


@body
def prelu(x: jax.Array, slope: jax.Array) -> jax.Array:
  """x above 0, slope · x below, the slope of each unit learned from 0.25 (He et al. 2015, §2.1)."""
  return jnp.where(x > 0, x, slope * x)


@body
def swish(x: jax.Array, beta: jax.Array) -> jax.Array:
  """x σ(beta · x): from SiLU, at beta 1, towards ReLU (Ramachandran et al. 2017, §5)."""
  return x * jax.nn.sigmoid(beta * x)


@body
def identity(x: jax.Array) -> jax.Array:
  """x: up and down are then one linear map, the yardstick for what a nonlinearity adds."""
  return x


@body
def glu(gate: jax.Array, up: jax.Array) -> jax.Array:
  """σ(gate) ⊙ up (Dauphin et al. 2017; Shazeer 2020, eq. 5)."""
  return sigmoid(gate) * up


@body
def bilinear(gate: jax.Array, up: jax.Array) -> jax.Array:
  """gate ⊙ up (Mnih & Hinton 2007; Shazeer 2020, eq. 5)."""
  return gate * up


@body
def reglu(gate: jax.Array, up: jax.Array) -> jax.Array:
  """max(gate, 0) ⊙ up (Shazeer 2020, eq. 6)."""
  return relu(gate) * up


@body
def geglu(gate: jax.Array, up: jax.Array) -> jax.Array:
  """GELU(gate) ⊙ up (Shazeer 2020, eq. 6)."""
  return gelu(gate) * up


@body
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
  """SiLU(gate) ⊙ up (Shazeer 2020, eq. 6)."""
  return silu(gate) * up


@body
def relu2_glu(gate: jax.Array, up: jax.Array) -> jax.Array:
  """max(gate, 0)² ⊙ up: the square of So et al. 2021 as the gate of Shazeer 2020."""
  return relu2(gate) * up


@body
def product(
  gate: jax.Array, up: jax.Array, on_gate: str, on_up: str, **own: jax.Array
) -> jax.Array:
  """on_gate(gate) ⊙ on_up(up): any pair of plain activations (Shazeer 2020, generalised)."""

  def side(name: str, activation: str, x: jax.Array) -> jax.Array:
    part = spec.parse('ffn.activation', activation)
    return activate(part, [x], {leaf: own[f'{name}_{leaf}'] for leaf in part.leaves})

  return side('gate', on_gate, gate) * side('up', on_up, up)
