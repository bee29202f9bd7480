"""Training and evaluation steps, compiled and timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from transformer import count, data, moe, population, train
from transformer.config import Config
from transformer.measure import compiled as of
from transformer.measure.measures import Asked, Measure
from transformer.measure.timing import chunked, per_step
from transformer.state import TrainState

_BATCHES = 8


def measure(asked: Asked) -> Measure:
  """The training step, or the evaluation step, of a resolved config.

  With --launch.together the training step of so many runs as one program.
  """
  config, training = asked.config, asked.what == 'train'
  source, program = data.load(config), train.Program(config)
  host = [source.train_batch(i) for i in range(_BATCHES)]
  state = train.with_counts(config, program, source, program.init(config))
  runs = config.launch.together if training else 1
  step, put = program.train_step if training else program.eval_step, program.put
  if runs > 1:
    step, put, state = _together(config, runs, state)
  start = time.perf_counter()
  lowered = step.lower(state if training else state.eval_params, put(host[0]))
  trace_s = time.perf_counter() - start
  compiled = lowered.compile()
  compile_s = time.perf_counter() - start

  def go(steps: int) -> None:
    nonlocal state
    for i in range(steps):
      batch = put(host[i % _BATCHES])
      if training:
        state, told = step(state, batch)
      else:
        told = step(state.eval_params, batch)
    jax.block_until_ready(told)

  tokens = runs * config.data.batch_size * config.data.seq_len
  flops = count.flops_per_token(config) / (1 if training else 3)

  def turn() -> dict:
    times = chunked(go, asked.seconds)
    step_s = statistics.median(times)
    return {
      'tokens_per_s': tokens / step_s,
      **per_step(times),
      'gflops_per_s': flops * tokens / step_s / 1e9,
    }

  devices = len(program.executor.devices)
  chips = 1 if jax.default_backend() == 'cpu' else devices  # those of a CPU are its cores
  facts = {
    'compile_s': compile_s,
    'trace_s': trace_s,
    'flops_per_token': flops,
    'chips': chips,
    'devices': devices,
    **{name: devices * cost for name, cost in of.costs(compiled).items()},
    'step_memory_mb': {k: devices / chips * v / 2**20 for k, v in of.memory(compiled).items()},
  }
  if shapes := moe.grouped_shapes(config, program.executor.shares):
    from transformer.ops import grouped

    facts['grouped_product'] = sorted({grouped.settle(shape) for shape in shapes})
  return Measure(turn, lambda: go(1), of.origins(compiled), facts)


def _together(
  config: Config, runs: int, state: TrainState
) -> tuple[Callable, Callable, TrainState]:
  """(the step of so many runs, what makes their batch of tokens, their states)."""
  found = population.Population(config, runs)

  def put(tokens: np.ndarray) -> dict[str, np.ndarray]:
    return found.batches(dict.fromkeys(range(runs), (None, found.program.batch(tokens))))

  return found.train_step, put, found.seated(dict.fromkeys(range(runs), (state, {})))
