"""What a training step takes in memory, by the compiled program, beside what arithmetic expects."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax

from transformer import memory, programs, tensors, train
from transformer.config import Config
from transformer.measure import compiled as of
from transformer.measure.measures import Asked, Measure


def measure(asked: Asked) -> Measure:
  """A turn compiles the step anew."""
  return Measure(lambda: step(asked.config))


def step(config: Config) -> dict:
  """The step's memory in MiB, of an accelerator or of all devices of a CPU; no array is made.

  step_peak_mb: arguments (state and batch), outputs that do not take their place, scratch and code.
  estimate_mb: the state and the activations that `describe` tells by formula, over all devices.
  """
  start = time.perf_counter()
  program = train.Program(config)
  found = of.memory(program.lowered(config).compile())
  times = len(program.executor.devices) if jax.default_backend() == 'cpu' else 1
  parts = {name: times * size / 2**20 for name, size in found.items()}
  estimate = sum(memory.state(config).values()) + tensors.kept_bytes(config)
  return {
    'compile_s': time.perf_counter() - start,
    'step_peak_mb': parts.pop('peak'),
    'step_memory_mb': parts,
    'estimate_mb': estimate / 2**20,
  }


def compiled(config: Config) -> jax.stages.Compiled:
  """The training step of a resolved config; no array of the state is made."""
  programs.keep(config.data.cache)
  return train.Program(config).lowered(config).compile()


def widest(peak: Callable[[int], float], memory: float, most: int) -> int:
  """The largest n up to `most` with peak(n) <= memory, for a peak that grows; 0 if there is none.

  Few calls, as each compiles: memory grows about linearly to quadratically with width, so the
  next guess is where the line through the last two would reach it.
  """
  low, high = 0, most + 1  # fits, does not
  at, last = min(8, most), None
  while high - low > 1:
    size = peak(at)
    low, high = (at, high) if size <= memory else (low, at)
    slope = (size - last[1]) / (at - last[0]) if last and last[0] != at else size / at
    last = (at, size)
    guess = round(at + (memory - size) / slope) if slope > 0 else (low + high) // 2
    at = min(max(guess, low + 1), high - 1)
  return low
