"""What a training step takes in memory, by the compiled program, beside what arithmetic expects."""

from __future__ import annotations

import time

from transformer import memory, tensors, train
from transformer.config import Config
from transformer.measure import compiled as of
from transformer.measure.measures import Asked, Measure


def measure(asked: Asked) -> Measure:
  """A turn compiles the step anew."""
  return Measure(lambda: step(asked.config))


def step(config: Config) -> dict:
  """The step's memory in MiB on one device; no array of the state is made.

  step_peak_mb: arguments (state and batch), outputs that do not take their place, scratch and code.
  estimate_mb: the state and the activations that `describe` tells by formula, over all devices.
  """
  lowered = train.Program(config).lowered(config)
  start = time.perf_counter()
  found = of.memory(lowered.compile())
  parts = {name: size / 2**20 for name, size in found.items()}
  estimate = sum(memory.state(config).values()) + tensors.kept_bytes(config)
  return {
    'compile_s': time.perf_counter() - start,
    'step_peak_mb': parts.pop('peak'),
    'step_memory_mb': parts,
    'estimate_mb': estimate / 2**20,
  }
