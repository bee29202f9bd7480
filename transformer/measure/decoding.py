"""Continuing random prompts with a fresh model."""

from __future__ import annotations

import statistics
import time

import jax
import numpy as np

from transformer import count, decode, params
from transformer.measure.measures import Asked, Measure
from transformer.measure.timing import quartiles, repeated


def measure(asked: Asked) -> Measure:
  """Prompts of prompt_tokens, each continued by new_tokens; none ends early.

  Greedy, or by a beam search of so many beams. tokens_per_s counts the new tokens of all prompts,
  the reading of the prompts included in the time.
  """
  config, rows, new = asked.config, asked.config.data.batch_size, asked.new_tokens
  weights = params.variables(config, jax.random.key(0))
  shape = rows, asked.prompt_tokens
  drawn = np.random.default_rng(0).integers(1, config.model.vocab_size, shape)
  prompts = list(drawn.astype(np.int32))

  def go() -> None:
    if asked.beams:
      decode.beam_search(config, weights, prompts, new, asked.beams, end=None)
    else:
      decode.generate(config, weights, prompts, new, end=None)

  start = time.perf_counter()
  go()
  first = time.perf_counter() - start

  def turn() -> dict:
    times = repeated(go, asked.seconds)
    middle = statistics.median(times)
    return {
      'tokens_per_s': rows * new / middle,
      'step_ms': 1e3 * middle / new,
      'step_ms_quartiles': quartiles([1e3 * t / new for t in times]),
      'times': len(times),
      'compile_s': max(first - middle, 0.0),
    }

  n = count.sizes(config)
  facts = {
    'beams': asked.beams,
    'prompt_tokens': asked.prompt_tokens,
    'new_tokens': new,
    # keys and values of one token, float32, over all layers
    'kept_bytes_per_token': 4 * n['L'] * n['K'] * (n['H'] + n['W']),
  }
  return Measure(turn, go, facts=facts)
