"""A decoder and its training as a user of Flax Linen and optax would write them: the plain way.

  python -m tests.reference_linen --d_model=96 --num_layers=2 --num_heads=3 --json

Layers from flax.linen, attention by einsum, optax's AdamW after clipping, one jit. It is the same
mathematics as the library's decoder at its defaults (tests/test_reference_linen.py), on rows of
one document each, so that speed can be compared: --against_command of experiments.benchmark runs
it. The activation is gelu as Linen has it by default, which is --ffn.activation=gelu_tanh.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState


@dataclasses.dataclass(frozen=True)
class Shape:
  """A model and its batch."""

  d_model: int = 96
  num_layers: int = 2
  num_heads: int = 3
  d_ff: int = 0  # 0: 4 d_model
  vocab_size: int = 1024
  batch_size: int = 16
  seq_len: int = 64
  dtype: str = 'float32'
  gelu: str = 'tanh'  # or exact
  attention: str = 'einsum'  # or jax: jax.nn.dot_product_attention


def rotary(x: jax.Array) -> jax.Array:
  """Su et al. 2021, §3.2.2."""
  half = x.shape[-1] // 2
  rates = 10000.0 ** (-jnp.arange(half) / half)
  angles = jnp.arange(x.shape[1])[:, None, None] * rates
  sin, cos = jnp.sin(angles), jnp.cos(angles)
  one, two = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([one * cos - two * sin, two * cos + one * sin], axis=-1).astype(x.dtype)


class Block(nn.Module):
  """Causal attention and a feed-forward network, each behind an RMSNorm."""

  shape: Shape

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    s = self.shape
    dtype = jnp.dtype(s.dtype)
    y = nn.RMSNorm(dtype=dtype, name='attention_norm')(x)
    heads = (s.num_heads, s.d_model // s.num_heads)
    query, key, value = (
      nn.DenseGeneral(heads, use_bias=False, dtype=dtype, name=name)(y)
      for name in ('query', 'key', 'value')
    )
    query, key = rotary(query), rotary(key)
    if s.attention == 'jax':
      y = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    else:
      scores = jnp.einsum('btnh,bsnh->bnts', query, key, preferred_element_type=jnp.float32)
      causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
      scores = jnp.where(causal, scores / jnp.sqrt(heads[1]), -jnp.inf)
      y = jnp.einsum('bnts,bsnh->btnh', nn.softmax(scores).astype(dtype), value)
    x += nn.DenseGeneral(s.d_model, axis=(-2, -1), use_bias=False, dtype=dtype, name='out')(y)
    y = nn.RMSNorm(dtype=dtype, name='ffn_norm')(x)
    y = nn.Dense(s.d_ff or 4 * s.d_model, use_bias=False, dtype=dtype, name='up')(y)
    y = nn.gelu(y, approximate=s.gelu == 'tanh')
    return x + nn.Dense(s.d_model, use_bias=False, dtype=dtype, name='down')(y)


class Decoder(nn.Module):
  """tokens (B, T) -> logits (B, T, V), float32."""

  shape: Shape

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    s = self.shape
    init = nn.initializers.normal(s.d_model**-0.5)
    embed = nn.Embed(s.vocab_size, s.d_model, embedding_init=init, dtype=s.dtype, name='embed')
    x = embed(tokens) * jnp.asarray(s.d_model**0.5, s.dtype)
    for i in range(s.num_layers):
      x = Block(s, name=f'block_{i}')(x)
    return embed.attend(nn.RMSNorm(dtype=s.dtype, name='final_norm')(x)).astype(jnp.float32)


def loss(shape: Shape, params: Any, tokens: jax.Array) -> jax.Array:
  """Mean cross-entropy of the next tokens, nats; tokens (B, T + 1)."""
  logits = Decoder(shape).apply({'params': params}, tokens[:, :-1])
  return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def create(shape: Shape, steps: int = 1000) -> TrainState:
  """Weights and optimizer before the first step."""
  tokens = jnp.zeros((1, shape.seq_len), jnp.int32)
  params = Decoder(shape).init(jax.random.key(0), tokens)['params']
  peak, warmup = 0.768 / shape.d_model, steps // 10
  rate = optax.warmup_cosine_decay_schedule(peak / warmup, peak, warmup - 1, steps, peak / 10)
  matrices = jax.tree.map(lambda p: p.ndim > 1, params)
  adamw = optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=0.1, mask=matrices)
  return TrainState.create(
    apply_fn=None, params=params, tx=optax.chain(optax.clip_by_global_norm(1.0), adamw)
  )


def train_step(shape: Shape, state: TrainState, tokens: jax.Array) -> tuple[TrainState, jax.Array]:
  """One optimizer step, and the loss before it."""
  value, grads = jax.value_and_grad(lambda p: loss(shape, p, tokens))(state.params)
  return state.apply_gradients(grads=grads), value


def measure(shape: Shape, seconds: float) -> dict:
  """Steps/s of training on random tokens, chunks of steps under way together."""
  state = create(shape)
  rng = np.random.default_rng(0)
  batches = rng.integers(1, shape.vocab_size, (8, shape.batch_size, shape.seq_len + 1), np.int32)
  step = jax.jit(lambda state, tokens: train_step(shape, state, tokens), donate_argnums=0)

  def go(steps: int) -> float:
    nonlocal state
    start = time.perf_counter()
    for i in range(steps):
      state, value = step(state, jax.device_put(batches[i % 8]))
    jax.block_until_ready(value)
    return time.perf_counter() - start

  compile_s = go(1)
  go(3)
  chunk = max(1, int(0.1 / go(1)))
  times = [go(chunk)]
  while len(times) < 5 or sum(times) < seconds:
    times.append(go(chunk))
  step_s = statistics.median(times) / chunk
  return {
    'peer': 'linen',
    'what': 'train',
    'tokens_per_s': shape.batch_size * shape.seq_len / step_s,
    'step_ms': 1e3 * step_s,
    'compile_s': compile_s,
    'params': sum(p.size for p in jax.tree.leaves(state.params)),
    **dataclasses.asdict(shape),
  }


def main() -> None:
  """Measures the shape that flags describe."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  for field in dataclasses.fields(Shape):
    parser.add_argument(f'--{field.name}', type=type(field.default), default=field.default)
  parser.add_argument('--seconds', type=float, default=10.0)
  parser.add_argument('--json', action='store_true', help='print JSON, as it always does')
  asked = vars(parser.parse_args())
  asked.pop('json')
  print(json.dumps(measure(seconds=asked.pop('seconds'), shape=Shape(**asked))))


if __name__ == '__main__':
  main()
