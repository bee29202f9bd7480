"""Worked examples in small integers, computed by the library's own modules.

Each is a list of steps as a textbook would print them: what is given, and what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from transformer import count
from transformer.attention import Attention
from transformer.block import Block, Context
from transformer.config import Config, resolve
from transformer.ffn import FFN
from transformer.layers import Norm
from transformer.ops.attention import mix, scores
from transformer.ops.product import product


@dataclass(frozen=True)
class Matrix:
  """A matrix with labels. given: it is an input or a weight, and stays on an empty worksheet."""

  name: str
  values: np.ndarray
  rows: Sequence[str]
  columns: Sequence[str]
  given: bool = False


@dataclass(frozen=True)
class Step:
  """A line of explanation, and the matrices it is about. answer: an empty worksheet lacks it."""

  says: str
  matrices: Sequence[Matrix] = ()
  answer: str = ''


def labels(letter: str, size: int) -> list[str]:
  """'t1', 't2', …"""
  return [f'{letter}{i + 1}' for i in range(size)]


# --- Mixing positions, then features.

X = np.array([[5, 6, 0, 7, 0], [3, 1, 4, 2, 1], [1, 2, 0, 3, 0]], np.float32)
A = np.eye(5, dtype=np.float32) + np.roll(np.eye(5, dtype=np.float32), 1, axis=0)
W1 = np.array([[1, 0, -1], [0, 1, 1], [-1, 1, 0], [1, -1, 1]], np.float32)
B1 = np.array([-2, -5, 2, -6], np.float32)
W2 = np.array([[1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 2, -1]], np.float32)
B2 = np.array([0, 1, -1], np.float32)


def attend(x_DT: np.ndarray, weights_ST: np.ndarray) -> np.ndarray:
  """Attention with given weights and identities for its projections; columns are positions."""
  size, length = x_DT.shape
  eye = np.eye(size, dtype=np.float32)
  params = dict.fromkeys(('query', 'key', 'value'), eye[:, None]) | {'out': eye[None]}
  attention = Attention(num_heads=1, head_dim=size)
  mask_BTS = jnp.ones((1, length, length), bool)
  y_BTD = attention.apply(
    {'params': params},
    *(x_DT.T[None], mask_BTS),
    weights_BNTS=jnp.asarray(weights_ST.T)[None, None],
  )
  return np.asarray(y_BTD[0].T)


def feed(z_DT: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The FFN: (before the ReLU, after it, the result); columns are positions."""
  params = {'up': W1.T, 'up_bias': B1, 'down': W2.T, 'down_bias': B2}
  network = FFN(d_ff=len(W1), activation='relu', bias=True)
  (y_BTD, _), seen = network.apply({'params': params}, z_DT.T[None], mutable=['diagnostics'])
  inside = seen['diagnostics']
  return tuple(np.asarray(x[0].T) for x in (inside['inputs'][0], inside['hidden'], y_BTD))


def mixing() -> list[Step]:
  """Five positions of three features, in columns as many books have them."""
  z = attend(X, A)
  u, h, y = feed(z)
  f, t, hidden = labels('f', 3), labels('t', 5), labels('h', 4)
  one = np.zeros_like(X)
  one[1, 2] = 1
  moved_z = attend(X + one, A) - z
  moved_y = feed(z + one)[2] - y
  return [
    Step(
      'Here a column is a position. The library holds the transposes (x_TD, weights_TS, up_DF, '
      'down_FD), a row a position, and multiplies from the other side.'
    ),
    Step('X: three features of five positions.', [Matrix('X', X, f, t, True)]),
    Step(
      'A, given in place of the softmax of scores: each position takes itself and the next, the '
      'last one the first.',
      [Matrix('A', A, t, t, True)],
    ),
    Step(
      'Attention, Z = X · A: Z₁ = X₁ + X₂, …, Z₅ = X₅ + X₁. Each column is a linear combination '
      'of columns; no feature meets another.',
      [Matrix('Z', z, f, t)],
    ),
    Step(
      'The FFN takes 3 features to 4 hidden units and back.',
      [
        Matrix('W₁', W1, hidden, f, True),
        Matrix('b₁', B1[:, None], hidden, [''], True),
        Matrix('W₂', W2, f, hidden, True),
        Matrix('b₂', B2[:, None], f, [''], True),
      ],
    ),
    Step('U = W₁ · Z + b₁, b₁ added to each column.', [Matrix('U', u, hidden, t)]),
    Step('H = max(U, 0), the ReLU.', [Matrix('H', h, hidden, t)]),
    Step(
      'Y = W₂ · H + b₂. Each column comes from its own column of Z; no position meets another.',
      [Matrix('Y', y, f, t)],
    ),
    Step(
      'What moves? Add 1 to feature 2 at position 3: of X for attention, of Z for the FFN.',
      [
        Matrix('change', one, f, t, True),
        Matrix('change of Z', moved_z, f, t),
        Matrix('change of Y by the FFN', moved_y, f, t),
      ],
      'Attention carries it to positions 2 and 3 and to no other feature; the FFN to features 2 '
      'and 3 and to no other position.',
    ),
  ]


# --- An encoder block.

LENGTH, HEADS, WIDTH, D_MODEL, D_FF = 3, 4, 2, 8, 12
TOKENS = np.array(
  [[1, 0, 1, 0, 2, 0, 0, 1], [0, 1, 1, 0, 0, 1, 2, 0], [1, 1, 0, 2, 0, 0, 1, 0]], np.float32
)


def block_params() -> dict:
  """Weights of few ones, so that every product can be done by hand."""
  eye = np.eye(D_MODEL, dtype=np.float32)
  pair = np.kron(np.eye(HEADS), [[1, -1], [1, 1]]).astype(np.float32)
  wide, tall = np.arange(D_FF), np.eye(D_FF, D_MODEL, dtype=np.float32)
  up = eye[:, wide % D_MODEL] + np.where(wide < D_MODEL, -1, 1) * eye[:, (wide + 3) % D_MODEL]
  by_head = (D_MODEL, HEADS, WIDTH)
  ones, zeros = np.ones(D_MODEL, np.float32), np.zeros(D_MODEL, np.float32)
  norm = {'scale': ones, 'bias': zeros}
  return {
    'attention': {
      'query': eye.reshape(by_head),
      'key': np.roll(eye, 1, axis=0).reshape(by_head),
      'value': pair.reshape(by_head),
      'out': (eye + np.roll(eye, 1, axis=1)).reshape(HEADS, WIDTH, D_MODEL),
    },
    'attention_norm': norm,
    'ffn': {
      'up': up.astype(np.float32),
      'up_bias': (wide % 2).astype(np.float32),
      'down': tall - np.roll(tall, 4, axis=0),
      'down_bias': ones,
    },
    'ffn_norm': norm,
  }


def block_config() -> Config:
  """Post-norm, as of Vaswani et al. 2017."""
  return resolve(
    Config().replace(
      **{
        'model.architecture': 'encoder',
        'model.d_model': D_MODEL,
        'model.num_layers': 1,
        'model.num_heads': HEADS,
        'model.vocab_size': 2,
        'model.positions': 'none',
        'model.norm': 'layernorm',
        'model.norm_placement': 'post',
        'ffn.d_ff': D_FF,
        'ffn.activation': 'relu',
        'ffn.bias': True,
        'data.source': 'synthetic',
        'data.seq_len': LENGTH,
      }
    )
  )


def block(x_TD: np.ndarray, params: dict) -> dict[str, np.ndarray]:
  """Every tensor of an encoder block on one sequence, by name and letters, B = 1."""
  config, x_BTD = block_config(), jnp.asarray(x_TD)[None]
  length = x_BTD.shape[1]
  ids_BT = jnp.zeros((1, length), jnp.int32)  # experts alone would ask which
  context = Context(ids_BT, jnp.ones((1, length, length), bool))
  (y_BTD, _), seen = Block(config, count.groups(config)[0]).apply(
    {'params': params},
    *(x_BTD, context, 0),
    capture_intermediates=True,
    mutable=['internals', 'diagnostics', 'intermediates'],
  )
  made = {name: out['__call__'][0] for name, out in seen['intermediates'].items() if name in params}
  own, ffn = params['attention'], seen['diagnostics']['ffn']
  query, key, value = (product('btd,dnh->btnh', x_BTD, own[n]) for n in ('query', 'key', 'value'))
  weights = seen['internals']['attention']['weights']
  found = {
    'x_BTD': x_BTD,
    'query_BTNH': query,
    'key_BSKH': key,
    'value_BSKW': value,
    'scores_BNTS': scores(query, key),
    'weights_BNTS': weights,
    'mixed_BTNW': mix(weights, value),
    'out_BTD': made['attention'],
    'sum_BTD': x_BTD + made['attention'],
    'normed_BTD': made['attention_norm'],
    'up_BTF': ffn['inputs'][0],
    'h_BTF': ffn['hidden'],
    'down_BTD': made['ffn'][0],
    'ffn_sum_BTD': made['attention_norm'] + made['ffn'][0],
    'y_BTD': y_BTD,
  }
  return jax.tree.map(np.asarray, found)


def encoder() -> list[Step]:
  """An encoder block: 3 positions, d_model 8, 4 heads of d_k = d_v = 2, d_ff 12; rows positions."""
  params = block_params()
  found, own = block(TOKENS, params), params['attention']
  t, s, d, f = (labels(c, n) for c, n in zip('tsdf', (LENGTH, LENGTH, D_MODEL, D_FF), strict=True))
  w = labels('w', WIDTH)

  def told(name: str) -> str:
    return f'{name} {found[name].shape}'

  def whole(name: str, columns: list[str], given: bool = False) -> Matrix:
    return Matrix(name, found[name][0], t, columns, given)

  steps = [
    Step(
      'Here a row is a position, as in the library: x · W. B is 1, one sequence. '
      f'T = S = {LENGTH} positions, D = {D_MODEL}, N = {HEADS} heads, d_k = H = d_v = W = {WIDTH}, '
      f'F = {D_FF}. Each number comes from unrounded ones and is shown to two decimals.'
    ),
    Step(f'{told("x_BTD")}: the input.', [whole('x_BTD', d, True)]),
    Step(
      f'The projections, {(D_MODEL, HEADS, WIDTH)} each: two columns for each head.',
      [
        Matrix(f'W_{name[0].upper()} ({name}_D{rest})', own[name].reshape(D_MODEL, -1), d,
               [f'{n + 1}.{i + 1}' for n in range(HEADS) for i in range(WIDTH)], True)
        for name, rest in (('query', 'NH'), ('key', 'KH'), ('value', 'KW'))
      ],
    ),
    Step(
      f'For each head: {told("query_BTNH")}, {told("key_BSKH")}, {told("value_BSKW")}; '
      f'{told("scores_BNTS")} = q · kᵀ / √2; {told("weights_BNTS")}, their softmax over s; '
      f'{told("mixed_BTNW")} = weights · v, a mean of the values.'
    ),
  ]  # fmt: skip
  for n in range(HEADS):
    steps.append(
      Step(
        f'Head {n + 1}',
        [
          Matrix('q', found['query_BTNH'][0, :, n], t, labels('h', WIDTH)),
          Matrix('k', found['key_BSKH'][0, :, n], s, labels('h', WIDTH)),
          Matrix('v', found['value_BSKW'][0, :, n], s, w),
        ],
      )
    )
    steps.append(
      Step(
        '',
        [
          Matrix('scores', found['scores_BNTS'][0, n], t, s),
          Matrix('weights', found['weights_BNTS'][0, n], t, s),
          Matrix('mixed', found['mixed_BTNW'][0, :, n], t, w),
        ],
      )
    )
  joined = found['mixed_BTNW'][0].reshape(LENGTH, -1)
  by_head = [f'{n + 1}.{i + 1}' for n in range(HEADS) for i in range(WIDTH)]
  out_NWD = own['out'].reshape(-1, D_MODEL)
  ffn = params['ffn']
  return [
    *steps,
    Step('The heads side by side, (3, 4 · 2).', [Matrix('concat', joined, t, by_head)]),
    Step('W₀ takes them back to d_model.', [Matrix('W₀ (out_NWD)', out_NWD, by_head, d, True)]),
    Step(f'{told("out_BTD")} = concat · W₀.', [whole('out_BTD', d)]),
    Step('Add: x_BTD + out_BTD.', [whole('sum_BTD', d)]),
    Step('& Norm: each row less its mean, over its deviation.', [whole('normed_BTD', d)]),
    Step(
      f'The FFN, from {D_MODEL} to {D_FF} hidden units.',
      [
        Matrix('W₁ (up_DF)', ffn['up'], d, f, True),
        Matrix('b₁', ffn['up_bias'][None], [''], f, True),
      ],
    ),
    Step(f'{told("up_BTF")} = normed_BTD · W₁ + b₁.', [whole('up_BTF', f)]),
    Step(f'{told("h_BTF")} = max(up_BTF, 0).', [whole('h_BTF', f)]),
    Step(
      'And back.',
      [
        Matrix('W₂ (down_FD)', ffn['down'], f, d, True),
        Matrix('b₂', ffn['down_bias'][None], [''], d, True),
      ],
    ),
    Step(f'{told("down_BTD")} = h_BTF · W₂ + b₂.', [whole('down_BTD', d)]),
    Step('Add: normed_BTD + down_BTD.', [whole('ffn_sum_BTD', d)]),
    Step(f'& Norm: {told("y_BTD")}, what the next block reads.', [whole('y_BTD', d)]),
  ]


# --- Layer norm.

ROWS = np.array([[1, 7, 7, 9], [1, 7, 7, 1], [2, 2, 4, 4]], np.float32)
SCALE, OFFSET = np.array([3, 6, -3, 3], np.float32), np.array([1, 0, 2, -1], np.float32)


def normed(x_TD: np.ndarray, scale_D: np.ndarray, bias_D: np.ndarray) -> np.ndarray:
  """LayerNorm of the rows, nothing added to the variance."""
  norm = Norm('layernorm(epsilon=0.0)')
  return np.asarray(norm.apply({'params': {'scale': scale_D, 'bias': bias_D}}, x_TD[None])[0])


def norm() -> list[Step]:
  """Layer norm of three positions of four features."""
  t, d = labels('t', 3), labels('d', 4)
  mean, variance = ROWS.mean(1, keepdims=True), ROWS.var(1, keepdims=True)
  bare = normed(ROWS, np.ones_like(SCALE), np.zeros_like(OFFSET))
  both = np.concatenate([mean, variance, np.sqrt(variance)], axis=1)
  return [
    Step('A row is a position, and each is normed by itself.', [Matrix('x', ROWS, t, d, True)]),
    Step(
      'Mean μ, variance σ² = mean of (x − μ)², over the 4 features and not 3; its root σ.',
      [Matrix('of each row', both, t, ['μ', 'σ²', 'σ'])],
    ),
    Step(
      'Less the mean, over σ. A model adds a small epsilon to σ², here 0.',
      [Matrix('x − μ', ROWS - mean, t, d), Matrix('(x − μ) / σ', bare, t, d)],
    ),
    Step(
      'Times scale, plus bias: each has a learned number for every feature.',
      [
        Matrix('scale', SCALE[None], [''], d, True),
        Matrix('bias', OFFSET[None], [''], d, True),
        Matrix('y', normed(ROWS, SCALE, OFFSET), t, d),
      ],
    ),
  ]


PARTS: dict[str, Callable[[], list[Step]]] = {'mixing': mixing, 'encoder': encoder, 'norm': norm}
