"""Oracles: the model in plain NumPy, float64, position by position. Written for reading."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

from tests.reference_ffn import Note, activation, ffn, silent
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


def score_bias(
  config: Config, weights: dict, causal: bool = True, side: str = ''
) -> Callable[[int, int], float]:
  """(head, distance back) -> what is added to a score; keys ahead are at distances below 0."""
  kind, heads = spec.parse('model.positions', config.model.positions), config.model.num_heads
  if kind.variant == 'alibi':
    return lambda n, distance: -(2.0 ** (-8 * (n + 1) / heads)) * abs(distance)
  if kind.variant != 'relative':
    return lambda n, distance: 0.0
  table_UN = weights[f'{side}positions']['bias']
  if causal:
    return lambda n, distance: table_UN[bucket(distance, kind.buckets, kind.max_distance), n]
  half = kind.buckets // 2  # for keys behind and at the query; the others for keys ahead

  def both_ways(n: int, distance: int) -> float:
    return table_UN[bucket(abs(distance), half, kind.max_distance) + half * (distance < 0), n]

  return both_ways


def cap(x: np.ndarray, largest: float) -> np.ndarray:
  """largest · tanh(x / largest); x where largest is 0."""
  return largest * np.tanh(x / largest) if largest else x


def visible(segments_T: np.ndarray, causal: bool = True, window: int = 0) -> np.ndarray:
  """mask_TS: which tokens each looks at, of its own document.

  causal: itself and those before; window: of these the nearest so many each way, itself included.
  """
  length = len(segments_T)
  mask_TS = np.zeros((length, length), bool)
  for t in range(length):
    for s in range(t + 1 if causal else length):
      near = abs(t - s) < window or not window
      mask_TS[t, s] = near and segments_T[t] == segments_T[s]
  return mask_TS


def attention(
  query_TNH: np.ndarray,
  key_SKH: np.ndarray,
  value_SKW: np.ndarray,
  mask_TS: np.ndarray,
  bias: Callable[[int, int], float] = lambda n, distance: 0.0,
  largest: float = 0.0,
  note: Note = silent,
) -> np.ndarray:
  """Each query looks where its mask says.

  Queries n of one group of N/K neighbours look at the same key and value head. largest: of scores.
  """
  (length, heads, width), keys = query_TNH.shape, len(key_SKH)
  group = heads // key_SKH.shape[1]
  out_TNW = np.zeros((length, heads, value_SKW.shape[-1]))
  scores_NTS, weights_NTS = np.zeros((2, heads, length, keys))
  for n in range(heads):
    key_SH, value_SW = key_SKH[:, n // group], value_SKW[:, n // group]
    for t in range(length):
      seen = np.flatnonzero(mask_TS[t])
      products = np.array([query_TNH[t, n] @ key_SH[s] for s in seen]) / np.sqrt(width)
      scores = cap(products, largest) + [bias(n, t - s) for s in seen]
      scores_NTS[n, t, seen] = scores
      weights = np.exp(scores - scores.max())
      weights_NTS[n, t, seen] = weights / weights.sum()
      for s in seen:
        out_TNW[t, n] += weights_NTS[n, t, s] * value_SW[s]
  note('scores', scores_NTS)
  note('weights', weights_NTS)
  return out_TNW


def project(weights: dict, name: str, x_TD: np.ndarray, note: Note = silent) -> np.ndarray:
  """Queries, keys or values of all heads, (T, heads, width), with bias and norm where they are."""
  x_TNH = np.einsum('td,dnh->tnh', x_TD, weights[name]) + weights.get(f'{name}_bias', 0.0)
  note(name, x_TNH)
  if f'{name}_norm' not in weights:
    return x_TNH
  heads = x_TNH.reshape(-1, x_TNH.shape[-1])
  return norm(weights[f'{name}_norm'], 'rmsnorm', heads).reshape(x_TNH.shape)


def combine(weights: dict, mixed_TNW: np.ndarray, note: Note = silent) -> np.ndarray:
  """What the heads found, as one vector a position."""
  note('mixed', mixed_TNW)
  y_TD = np.einsum('tnw,nwd->td', mixed_TNW, weights['out']) + weights.get('out_bias', 0.0)
  note('out', y_TD)
  return y_TD


def self_attention(
  weights: dict,
  x_TD: np.ndarray,
  segments_T: np.ndarray,
  base: float | None = None,
  causal: bool = True,
  window: int = 0,
  note: Note = silent,
  **how: Any,
) -> np.ndarray:
  """Projections, norms of heads, rotation by position (base None: none), attention, `out`."""
  query, key, value = (project(weights, name, x_TD, note) for name in ('query', 'key', 'value'))
  if base:
    for t, position in enumerate(positions(segments_T)):
      for x_TNH in (query, key):
        x_TNH[t] = [rotate(x_H, position, base) for x_H in x_TNH[t]]
  mask_TS = visible(segments_T, causal, window)
  return combine(weights, attention(query, key, value, mask_TS, note=note, **how), note)


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
  """One layer. branches: 'attention', …, 'ffn', as far as it has them, as functions of x_TD."""
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


def embed(
  config: Config,
  weights: dict,
  tokens_T: np.ndarray,
  segments_T: np.ndarray,
  types_T: np.ndarray | None = None,
  side: str = '',
  note: Note = silent,
) -> np.ndarray:
  """What enters the first layer. side: 'source_' in the encoder of an encoder_decoder."""
  m, kind = config.model, spec.parse('model.positions', config.model.positions)
  scale = np.sqrt(m.d_model) if m.embedding_scale == 'sqrt_d_model' else 1.0
  table_VD = weights.get(f'{side}embed', weights['embed'])['table']
  x_TD = table_VD[tokens_T] * scale
  for t, position in enumerate(positions(segments_T)):
    if kind.variant == 'sinusoidal':
      x_TD[t] += sinusoid(position, m.d_model)
    elif kind.variant == 'learned':
      x_TD[t] += weights[f'{side}positions']['table'][position] * scale
  if m.token_types:
    types_T = np.zeros_like(tokens_T) if types_T is None else types_T
    x_TD += weights['types']['table'][types_T] * scale
  if m.embedding_norm:
    x_TD = norm(weights[f'{side}embed_norm'], m.norm, x_TD)
  note(f'{side}embedding', x_TD)
  return x_TD


def stack(
  config: Config,
  weights: dict,
  name: str,
  x_TD: np.ndarray,
  segments_T: np.ndarray,
  causal: bool = True,
  more: Callable[[dict, Note], dict[str, Callable]] = lambda layer, note: {},
  note: Note = silent,
) -> np.ndarray:
  """The stream after the layers called `name`, and their last norm.

  more: the branches of a layer between attention and FFN.
  """
  m, f = config.model, config.ffn
  encoder = name == 'encoder_layers'
  kind, before = spec.parse('model.positions', m.positions), 0
  function, depth = f.activation, m.num_layers
  if encoder:
    function, depth = f.encoder_activation or function, m.num_encoder_layers or depth
  elif m.architecture == 'encoder_decoder':  # whose layers are numbered from the encoder's first on
    before = m.num_encoder_layers or depth
  how = dict(
    segments_T=segments_T,
    base=kind.base if kind.variant == 'rotary' else None,
    bias=score_bias(config, weights, causal, 'source_' if encoder else ''),
    largest=m.attention_cap,
    causal=causal,
    window=m.attention_window,
  )
  for i, layer in enumerate(_layers(weights, name, depth)):
    network = layer.get('ffn', weights.get('ffn'))
    inside, branches = functools.partial(_note_in, note, before + i), {}
    if 'attention' in layer:
      own = functools.partial(self_attention, layer['attention'], note=inside, **how)
      branches['attention'] = own
    branches |= more(layer, inside)
    if network:
      branches['ffn'] = functools.partial(ffn, network, function, note=inside)
    x_TD = block(config, layer, branches, x_TD, inside)
  if m.norm_placement != 'post':
    last = 'encoder' if encoder else 'final'
    x_TD = norm(weights.get(f'{last}_norm', {}), m.norm, x_TD)
    note(f'{last}_normed', x_TD)
  return x_TD


def head(config: Config, weights: dict, x_TD: np.ndarray, note: Note = silent) -> np.ndarray:
  """logits_TV."""
  m, unembed, own = config.model, weights.get('unembed', {}), weights.get('head')
  if own:
    x_TD = activation(config.ffn.activation, [x_TD @ own['transform'] + own['transform_bias']])
    x_TD = norm(weights.get('head_norm', {}), m.norm, x_TD)
  table_VD = unembed.get('table', weights['embed']['table'])
  logits_TV = cap(x_TD @ table_VD.T + unembed.get('bias', 0.0), m.logit_cap)
  note('logits', logits_TV)
  return logits_TV


def decoder(
  config: Config, weights: dict, tokens_T: np.ndarray, segments_T: np.ndarray, note: Note = silent
) -> np.ndarray:
  """logits_TV of one row. `weights` is the model's own tree of parameters."""
  weights = float64(weights)
  x_TD = embed(config, weights, tokens_T, segments_T, note=note)
  x_TD = stack(config, weights, 'layers', x_TD, segments_T, note=note)
  return head(config, weights, x_TD, note)


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


def _note_in(note: Note, layer: int, name: str, x: np.ndarray) -> None:
  note(f'{layer}/{name}', x)


def float64(tree: dict) -> dict:
  """A tree of arrays in double precision."""
  return {
    name: float64(x) if isinstance(x, dict) else np.asarray(x, np.float64)
    for name, x in tree.items()
  }


def _layers(weights: dict, stack: str, number: int) -> list[dict]:
  """The layers' own parameters in order, out of 'layers', or of 'layers_0', 'layers_3', …"""
  names = [name for name in weights if re.fullmatch(rf'{stack}(_\d+)?', name)]
  if not names:
    return [{}] * number  # one FFN for all, and nothing else
  return [
    _layer(weights[name], i)
    for name in sorted(names, key=lambda name: int(name.removeprefix(stack)[1:] or 0))
    for i in range(len(_first(weights[name])))
  ]


def _first(tree: dict) -> np.ndarray:
  inner = next(iter(tree.values()))
  return _first(inner) if isinstance(inner, dict) else inner


def _layer(stacked: dict, i: int) -> dict:
  return {name: _layer(x, i) if isinstance(x, dict) else x[i] for name, x in stacked.items()}
