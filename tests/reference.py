"""Oracles: the model in plain NumPy, float64, position by position. Written for reading."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

from tests.reference_ffn import Note, ffn, silent
from transformer import spec
from transformer.config import Config


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


def bucket(distance: int, buckets: int, max_distance: int) -> int:
  """Of a distance back (Raffel et al. 2020, as in their code, one direction)."""
  exact = buckets // 2
  if distance < exact:
    return distance
  share = np.log(distance / exact) / np.log(max_distance / exact)
  return min(exact + int(share * (buckets - exact)), buckets - 1)


def score_bias(config: Config, weights: dict) -> Callable[[int, int], float]:
  """(head, distance back) -> what is added to a score."""
  kind, heads = spec.parse('model.positions', config.model.positions), config.model.num_heads
  if kind.variant == 'alibi':
    return lambda n, distance: -(2.0 ** (-8 * (n + 1) / heads)) * distance
  if kind.variant == 'relative':
    table_UN = weights['positions']['bias']
    return lambda n, distance: table_UN[bucket(distance, kind.buckets, kind.max_distance), n]
  return lambda n, distance: 0.0


def cap(x: np.ndarray, largest: float) -> np.ndarray:
  """largest · tanh(x / largest); x where largest is 0."""
  return largest * np.tanh(x / largest) if largest else x


def attention(
  query_TNH: np.ndarray,
  key_TKH: np.ndarray,
  value_TKH: np.ndarray,
  segments_T: np.ndarray,
  bias: Callable[[int, int], float] = lambda n, distance: 0.0,
  largest: float = 0.0,
  note: Note = silent,
) -> np.ndarray:
  """Each query looks at itself and at earlier tokens of its own document.

  Queries n of one group of N/K neighbours look at the same key and value head. largest: of scores.
  """
  length, heads, width = query_TNH.shape
  group = heads // key_TKH.shape[1]
  out_TNH, scores_NTS = np.zeros_like(query_TNH), np.zeros((heads, length, length))
  for n in range(heads):
    key_SH, value_SH = key_TKH[:, n // group], value_TKH[:, n // group]
    for t in range(length):
      seen = [s for s in range(t + 1) if segments_T[s] == segments_T[t]]
      products = np.array([query_TNH[t, n] @ key_SH[s] for s in seen]) / np.sqrt(width)
      scores = cap(products, largest) + [bias(n, t - s) for s in seen]
      scores_NTS[n, t, seen] = scores
      weights = np.exp(scores - scores.max())
      weights /= weights.sum()
      for s, weight in zip(seen, weights, strict=True):
        out_TNH[t, n] += weight * value_SH[s]
  note('scores', scores_NTS)
  return out_TNH


def self_attention(
  weights: dict,
  x_TD: np.ndarray,
  segments_T: np.ndarray,
  base: float | None = None,
  note: Note = silent,
  **how: Any,
) -> np.ndarray:
  """Projections, norms of heads, rotation by position (base None: none), attention, `out`."""

  def project(name: str) -> np.ndarray:
    x_TNH = np.einsum('td,dnh->tnh', x_TD, weights[name]) + weights.get(f'{name}_bias', 0.0)
    note(name, x_TNH)
    if f'{name}_norm' not in weights:
      return x_TNH
    heads = x_TNH.reshape(-1, x_TNH.shape[-1])
    return norm(weights[f'{name}_norm'], 'rmsnorm', heads).reshape(x_TNH.shape)

  query, key, value = project('query'), project('key'), project('value')
  if base:
    for t, position in enumerate(positions(segments_T)):
      for x_TNH in (query, key):
        x_TNH[t] = [rotate(x_H, position, base) for x_H in x_TNH[t]]
  mixed = attention(query, key, value, segments_T, note=note, **how)
  note('mixed', mixed)
  y_TD = np.einsum('tnh,nhd->td', mixed, weights['out']) + weights.get('out_bias', 0.0)
  note('out', y_TD)
  return y_TD


def norm(weights: dict, kind: str, x_TD: np.ndarray) -> np.ndarray:
  """RMSNorm, LayerNorm or nothing, of each position."""
  variant = spec.parse('model.norm', kind)
  if variant.variant == 'none':
    return x_TD
  out_TD = np.zeros_like(x_TD)
  for t, x_D in enumerate(x_TD):
    if variant.variant == 'layernorm':
      x_D = (x_D - x_D.mean()) / np.sqrt(x_D.var() + variant.epsilon)
    else:
      x_D = x_D / np.sqrt(np.mean(x_D**2) + variant.epsilon)
    out_TD[t] = x_D * weights['scale'] + weights.get('bias', 0.0)
  return out_TD


def block(config: Config, layer: dict, branches: dict[str, Callable], x_TD: np.ndarray, note: Note):
  """One layer. branches: 'attention' and 'ffn', as far as it has them, as functions of x_TD."""
  m = config.model

  def normed(name: str, x_TD: np.ndarray) -> np.ndarray:
    y_TD = norm(layer.get(f'{name}_norm', {}), m.norm, x_TD)
    note(f'{name}_normed', y_TD)
    return y_TD

  def update(name: str, x_TD: np.ndarray) -> np.ndarray:
    y_TD = branches[name](x_TD)
    return normed(f'{name}_out', y_TD) if m.norm_placement == 'sandwich' else y_TD

  stages = {'block': list(branches)} if m.parallel_branches else {name: [name] for name in branches}
  for stage, members in stages.items():
    if m.norm_placement == 'post':
      x_TD = normed(stage, x_TD + sum(update(name, x_TD) for name in members))
    else:
      inner_TD = normed(stage, x_TD)
      x_TD = x_TD + sum(update(name, inner_TD) for name in members)
    note(f'stream_{stage}', x_TD)
  return x_TD


def decoder(
  config: Config, weights: dict, tokens_T: np.ndarray, segments_T: np.ndarray, note: Note = silent
) -> np.ndarray:
  """logits_TV of one row. `weights` is the model's own tree of parameters."""
  m, f = config.model, config.ffn
  weights = _float64(weights)
  table_VD, kind = weights['embed']['table'], spec.parse('model.positions', m.positions)
  scale = np.sqrt(m.d_model) if m.embedding_scale == 'sqrt_d_model' else 1.0
  x_TD = table_VD[tokens_T] * scale
  for t, position in enumerate(positions(segments_T)):
    if kind.variant == 'sinusoidal':
      x_TD[t] += sinusoid(position, m.d_model)
    elif kind.variant == 'learned':
      x_TD[t] += weights['positions']['table'][position] * scale
  note('embedding', x_TD)
  base = kind.base if kind.variant == 'rotary' else None
  how = dict(base=base, bias=score_bias(config, weights), largest=m.attention_cap)
  for i, layer in enumerate(_layers(weights, m.num_layers)):
    network, inside = layer.get('ffn', weights.get('ffn')), functools.partial(_note_in, note, i)
    branches = {}
    if 'attention' in layer:
      own = dict(segments_T=segments_T, note=inside, **how)
      branches['attention'] = functools.partial(self_attention, layer['attention'], **own)
    if network:
      branches['ffn'] = functools.partial(ffn, network, f.activation, note=inside)
    x_TD = block(config, layer, branches, x_TD, inside)
  if m.norm_placement != 'post':
    x_TD = norm(weights.get('final_norm', {}), m.norm, x_TD)
    note('final_normed', x_TD)
  unembed = weights.get('unembed', {})
  logits_TV = cap(x_TD @ unembed.get('table', table_VD).T + unembed.get('bias', 0.0), m.logit_cap)
  note('logits', logits_TV)
  return logits_TV


def cross_entropy(logits_TV: np.ndarray, targets_T: np.ndarray) -> tuple[float, int]:
  """(Σ −log softmax(logits)[target], number of targets), targets of −1 left out."""
  total, count = 0.0, 0
  for logits_V, target in zip(logits_TV, targets_T, strict=True):
    if target >= 0:
      total -= special.log_softmax(np.float64(logits_V))[target]
      count += 1
  return total, count


def objective(logits_TV, targets_T, label_smoothing: float, z_loss: float) -> float:
  """Σ of −Σ_v q(v) log p(v) + z_loss · log² Z, q mixed with a uniform distribution."""
  total, entries = 0.0, logits_TV.shape[1]
  for logits_V, target in zip(logits_TV, targets_T, strict=True):
    if target >= 0:
      logits_V = np.float64(logits_V)
      wanted_V = np.full(entries, label_smoothing / entries)
      wanted_V[target] += 1 - label_smoothing
      total -= wanted_V @ special.log_softmax(logits_V)
      total += z_loss * special.logsumexp(logits_V) ** 2
  return total


def clip(grads: dict, largest: float) -> dict:
  """Gradients by path, scaled down together to a global norm of at most `largest`."""
  norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
  return {path: g * min(1.0, largest / norm) for path, g in grads.items()}


def adam(grad, moments, step, b1, b2, eps):
  """The direction of an Adam step (Kingma & Ba 2015, algorithm 1); step counts from 1.

  moments: (first, second). Returns (direction, moments).
  """
  first = b1 * moments[0] + (1 - b1) * grad
  second = b2 * moments[1] + (1 - b2) * grad**2
  return (first / (1 - b1**step)) / (np.sqrt(second / (1 - b2**step)) + eps), (first, second)


def adamw(value, grad, moments, step, rate, b1, b2, eps, decay):
  """One AdamW step (Loshchilov & Hutter 2019, algorithm 2) of one array; step counts from 1.

  Returns (value, moments).
  """
  direction, moments = adam(grad, moments, step, b1, b2, eps)
  return value - rate * (direction + decay * value), moments


def sgd(grad, total, momentum, nesterov):
  """Sutskever et al. 2013, §2; Nesterov's as Bengio et al. 2013 rewrote it."""
  total = grad + momentum * total
  return (grad + momentum * total if nesterov else total), total


def lion(grad, momentum, b1, b2):
  """Chen et al. 2023, program 1."""
  return np.sign(b1 * momentum + (1 - b1) * grad), b2 * momentum + (1 - b2) * grad


def adafactor(value, grad, moments, step, power, clip, relative, factored):
  """Shazeer & Stern 2018, algorithm 4, and 5 if `relative`, of one matrix or vector.

  moments: (sums of rows, sums of columns), or (second moment,) where not factored.
  """
  b2, square = 1 - step**-power, grad**2 + 1e-30
  now = (square.sum(1), square.sum(0)) if factored else (square,)
  moments = tuple(b2 * old + (1 - b2) * new for old, new in zip(moments, now, strict=True))
  second = np.outer(*moments) / moments[0].sum() if factored else moments[0]
  update = grad / np.sqrt(second)
  update /= max(1.0, np.sqrt(np.mean(update**2)) / clip)
  return (update * max(1e-3, np.sqrt(np.mean(value**2))) if relative else update), moments


def muon(grad, mean, step, beta, nesterov, iterations):
  """Jordan et al. 2024 with optax's corrections of bias, for one matrix (fan_in, fan_out).

  Scaled as in Liu et al. 2025, eq. 4.
  """
  mean = beta * mean + (1 - beta) * grad
  x = mean / (1 - beta**step)
  if nesterov:
    ahead = mean / (1 - beta ** (step + 1))
    x = beta * ahead + (1 - beta) * grad / (1 - beta**step)
  x = x / (np.linalg.norm(x) + 1e-8)
  x = x.T if (tall := x.shape[0] > x.shape[1]) else x
  for _ in range(iterations):
    a = x @ x.T
    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
  x = x.T if tall else x
  return 0.2 * np.sqrt(max(x.shape)) * x, mean


def _note_in(note: Note, layer: int, name: str, x: np.ndarray) -> None:
  note(f'{layer}/{name}', x)


def _float64(tree: dict) -> dict:
  return {
    name: _float64(x) if isinstance(x, dict) else np.asarray(x, np.float64)
    for name, x in tree.items()
  }


def _layers(weights: dict, number: int) -> list[dict]:
  """The layers' own parameters in order, out of 'layers', or of 'layers_0', 'layers_3', …"""
  names = [name for name in weights if name.startswith('layers')]
  if not names:
    return [{}] * number  # one FFN for all, and nothing else
  return [
    _layer(weights[name], i)
    for name in sorted(names, key=lambda name: int(name.partition('_')[2] or 0))
    for i in range(len(_first(weights[name])))
  ]


def _first(tree: dict) -> np.ndarray:
  inner = next(iter(tree.values()))
  return _first(inner) if isinstance(inner, dict) else inner


def _layer(stacked: dict, i: int) -> dict:
  return {name: _layer(x, i) if isinstance(x, dict) else x[i] for name, x in stacked.items()}
