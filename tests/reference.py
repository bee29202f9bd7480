"""Oracles: the model in plain NumPy, float64, position by position. Written for reading."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

from transformer import spec
from transformer.activations import BODIES
from transformer.config import Config

PLAIN = {
  'relu': lambda x: np.where(x > 0, x, 0.0),
  'gelu': lambda x: x * stats.norm.cdf(x),
  'silu': lambda x: x * special.expit(x),
  'relu2': lambda x: np.where(x > 0, x, 0.0) ** 2,
  'identity': lambda x: x,
}
GATED = {
  'geglu': lambda gate, up: PLAIN['gelu'](gate) * up,
  'swiglu': lambda gate, up: PLAIN['silu'](gate) * up,
}


def activation(name: str, *hidden: np.ndarray) -> np.ndarray:
  """The oracle's value; of an activation without one, that of its own body in float64."""
  if oracle := PLAIN.get(name) or GATED.get(name):
    return oracle(*hidden)
  with jax.enable_x64(True):
    return np.asarray(BODIES[name](*map(jnp.asarray, hidden)))


def ffn(weights: dict, name: str, x_TD: np.ndarray) -> np.ndarray:
  """down(f(up(x))) or down(f(gate(x), up(x))), one position after the other."""

  def project(of: str, x: np.ndarray) -> np.ndarray:
    return x @ weights[of] + weights.get(f'{of}_bias', 0.0)

  y_TD = np.zeros_like(x_TD)
  for t, x_D in enumerate(x_TD):
    inputs = ('gate', 'up') if 'gate' in weights else ('up',)
    y_TD[t] = project('down', activation(name, *(project(of, x_D) for of in inputs)))
  return y_TD


def positions(segments_T: np.ndarray) -> np.ndarray:
  """0, 1, 2, … from the start of each document."""
  found = np.zeros(len(segments_T), int)
  for t in range(1, len(segments_T)):
    found[t] = found[t - 1] + 1 if segments_T[t] == segments_T[t - 1] else 0
  return found


def rotate(x_H: np.ndarray, position: int, base: float) -> np.ndarray:
  """Pair (h, h + H/2) as a complex number, times exp(i · position · base^(−2h/H))."""
  half = len(x_H) // 2
  pairs = x_H[:half] + 1j * x_H[half:]
  pairs = pairs * np.exp(1j * position * base ** (-2 * np.arange(half) / len(x_H)))
  return np.concatenate([pairs.real, pairs.imag])


def sinusoid(position: int, d_model: int) -> np.ndarray:
  """PE(pos, 2i) = sin(pos / 10000^(2i/d)), PE(pos, 2i+1) = cos(same), Vaswani et al. 2017, §3.5.

  Returned with all sines before all cosines, as our model lays them out.
  """
  vector = np.zeros(d_model)
  for i in range(d_model // 2):
    angle = position / 10000 ** (2 * i / d_model)
    vector[2 * i], vector[2 * i + 1] = np.sin(angle), np.cos(angle)
  return np.concatenate([vector[0::2], vector[1::2]])


def attention(
  query_TNH: np.ndarray, key_TNH: np.ndarray, value_TNH: np.ndarray, segments_T: np.ndarray
) -> np.ndarray:
  """Each query looks at itself and at earlier tokens of its own document."""
  length, heads, width = query_TNH.shape
  out_TNH = np.zeros_like(value_TNH)
  for n in range(heads):
    for t in range(length):
      seen = [s for s in range(t + 1) if segments_T[s] == segments_T[t]]
      scores = np.array([query_TNH[t, n] @ key_TNH[s, n] for s in seen]) / np.sqrt(width)
      weights = np.exp(scores - scores.max())
      weights /= weights.sum()
      for s, weight in zip(seen, weights, strict=True):
        out_TNH[t, n] += weight * value_TNH[s, n]
  return out_TNH


def self_attention(weights: dict, base: float | None, x_TD: np.ndarray, segments_T: np.ndarray):
  """Projections, rotation by position (base None: none), attention, output projection."""

  def project(name: str) -> np.ndarray:
    return np.einsum('td,dnh->tnh', x_TD, weights[name]) + weights.get(f'{name}_bias', 0.0)

  query, key, value = project('query'), project('key'), project('value')
  if base:
    for t, position in enumerate(positions(segments_T)):
      for n in range(query.shape[1]):
        query[t, n] = rotate(query[t, n], position, base)
        key[t, n] = rotate(key[t, n], position, base)
  mixed = attention(query, key, value, segments_T)
  return np.einsum('tnh,nhd->td', mixed, weights['out']) + weights.get('out_bias', 0.0)


def norm(weights: dict, kind: str, x_TD: np.ndarray) -> np.ndarray:
  """RMSNorm or LayerNorm of each position."""
  variant = spec.parse('model.norm', kind)
  out_TD = np.zeros_like(x_TD)
  for t, x_D in enumerate(x_TD):
    if variant.variant == 'layernorm':
      x_D = (x_D - x_D.mean()) / np.sqrt(x_D.var() + variant.epsilon)
    else:
      x_D = x_D / np.sqrt(np.mean(x_D**2) + variant.epsilon)
    out_TD[t] = x_D * weights['scale'] + weights.get('bias', 0.0)
  return out_TD


def decoder(config: Config, weights: dict, tokens_T: np.ndarray, segments_T: np.ndarray):
  """logits_TV of one row. `weights` is the model's own tree of parameters."""
  m, f = config.model, config.ffn
  weights = _float64(weights)
  table_VD, kind = weights['embed']['table'], spec.parse('model.positions', m.positions)
  x_TD = table_VD[tokens_T] * np.sqrt(m.d_model)
  for t, position in enumerate(positions(segments_T)):
    if kind.variant == 'sinusoidal':
      x_TD[t] += sinusoid(position, m.d_model)
    elif kind.variant == 'learned':
      x_TD[t] += weights['positions']['table'][position]
  base = kind.base if kind.variant == 'rotary' else None
  activation = spec.parse('ffn.activation', f.activation).variant
  for i in range(m.num_layers):
    layer = _layer(weights['layers'], i)
    normed = norm(layer['attention_norm'], m.norm, x_TD)
    x_TD = x_TD + self_attention(layer['attention'], base, normed, segments_T)
    normed = norm(layer['ffn_norm'], m.norm, x_TD)
    x_TD = x_TD + ffn(layer['ffn'], activation, normed)
  return norm(weights['final_norm'], m.norm, x_TD) @ table_VD.T


def cross_entropy(logits_TV: np.ndarray, targets_T: np.ndarray) -> tuple[float, int]:
  """(Σ −log softmax(logits)[target], number of targets), targets of −1 left out."""
  total, count = 0.0, 0
  for logits_V, target in zip(logits_TV, targets_T, strict=True):
    if target >= 0:
      total -= special.log_softmax(np.float64(logits_V))[target]
      count += 1
  return total, count


def clip(grads: dict, largest: float) -> dict:
  """Gradients by path, scaled down together to a global norm of at most `largest`."""
  norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
  return {path: g * min(1.0, largest / norm) for path, g in grads.items()}


def adamw(value, grad, moments, step, rate, b1, b2, eps, decay):
  """One AdamW step (Loshchilov & Hutter 2019, algorithm 2) of one array; step counts from 1.

  moments: (first, second). Returns (value, moments).
  """
  first = b1 * moments[0] + (1 - b1) * grad
  second = b2 * moments[1] + (1 - b2) * grad**2
  direction = (first / (1 - b1**step)) / (np.sqrt(second / (1 - b2**step)) + eps)
  return value - rate * (direction + decay * value), (first, second)


def _float64(tree: dict) -> dict:
  return {
    name: _float64(x) if isinstance(x, dict) else np.asarray(x, np.float64)
    for name, x in tree.items()
  }


def _layer(stacked: dict, i: int) -> dict:
  return {name: _layer(x, i) if isinstance(x, dict) else x[i] for name, x in stacked.items()}
