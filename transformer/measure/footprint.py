"""What a training step takes in memory, by the compiled program, beside what arithmetic expects."""

from __future__ import annotations

import time

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
