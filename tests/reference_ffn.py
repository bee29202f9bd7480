"""Oracles of the activations and of the feed-forward network, in plain NumPy and float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

from transformer import spec
from transformer.activations import activate

Note = Callable[[str, np.ndarray], None]  # is told of tensors on the way, by their names in ORDER


def silent(name: str, x: np.ndarray) -> None:
  """Notes nothing."""


PLAIN = {
  'relu': lambda x: np.where(x > 0, x, 0.0),
  'gelu': lambda x: x * stats.norm.cdf(x),
  'gelu_tanh': lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
  'silu': lambda x: x * special.expit(x),
  'relu2': lambda x: np.where(x > 0, x, 0.0) ** 2,
  'leaky_relu': lambda x, slope: np.where(x > 0, x, slope * x),
  'leaky_relu2': lambda x, slope: np.where(x > 0, x**2, slope**2 * x**2),
  'sigmoid': special.expit,
  'tanh': np.tanh,
  'elu': lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
  'selu': lambda x: 1.0507009873554805 * PLAIN['elu'](x, 1.6732632423543772),
  'softplus': lambda x: np.logaddexp(0, x),
  'softplus2': lambda x: np.logaddexp(0, x) ** 2,
  'mish': lambda x: x * np.tanh(np.logaddexp(0, x)),
  'prelu': lambda x, slope: np.where(x > 0, x, slope * x),
  'swish': lambda x, beta: x * special.expit(beta * x),
  'identity': lambda x: x,
}
GATED = {
  'glu': lambda gate, up: special.expit(gate) * up,
  'bilinear': lambda gate, up: gate * up,
  'reglu': lambda gate, up: PLAIN['relu'](gate) * up,
  'geglu': lambda gate, up: PLAIN['gelu'](gate) * up,
  'swiglu': lambda gate, up: PLAIN['silu'](gate) * up,
  'relu2_glu': lambda gate, up: PLAIN['relu2'](gate) * up,
}


def activation(text: str, inputs: list[np.ndarray], leaves: dict | None = None) -> np.ndarray:
  """The oracle's value; of an activation without one, that of its own body in float64.

  inputs: up, or gate and up. leaves: the arrays it owns, by the names of its `leaves`.
  """
  variant, leaves = spec.parse('ffn.activation', text), leaves or {}
  if variant.variant == 'product':
    sides = zip(('gate', 'up'), (variant.on_gate, variant.on_up), inputs, strict=True)
    return np.prod([activation(part, [x], below(leaves, side)) for side, part, x in sides], axis=0)
  oracle = PLAIN.get(variant.variant) or GATED.get(variant.variant)
  if oracle:
    return oracle(*inputs, **dataclasses.asdict(variant), **below(leaves, variant.variant))
  with jax.enable_x64(True):
    return np.asarray(activate(variant, [*map(jnp.asarray, inputs)], leaves))


def below(tree: dict, prefix: str) -> dict:
  """What is named 'prefix_name', by its name."""
  return {k.removeprefix(f'{prefix}_'): v for k, v in tree.items() if k.startswith(f'{prefix}_')}


def ffn(weights: dict, text: str, x_TD: np.ndarray, note: Note = silent) -> np.ndarray:
  """down(f(up(x))) or down(f(gate(x), up(x))), one position after the other.

  With `middle_up` among the weights, another such layer comes before `down`.
  """
  inputs = spec.parse('ffn.activation', text).inputs

  def project(of: str, x: np.ndarray) -> np.ndarray:
    y = x @ weights[of] + weights.get(f'{of}_bias', 0.0)
    note(of, y)
    return y

  def hidden(stage: str, x: np.ndarray) -> np.ndarray:
    leaves = {k.removeprefix(stage): v for k, v in weights.items() if k.startswith(stage)}
    h_F = activation(text, [project(stage + of, x) for of in inputs], leaves)
    note(f'{stage}hidden', h_F)
    return h_F

  y_TD = np.zeros_like(x_TD)
  for t, x_D in enumerate(x_TD):
    h_F = hidden('', x_D)
    if 'middle_up' in weights:
      h_F = hidden('middle_', h_F)
    y_TD[t] = project('down', h_F)
  return y_TD
