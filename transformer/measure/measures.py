"""One side of a measurement: what is asked of it, and what it answers with."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field

from transformer.config import Config

# what -> (module of its `measure`, what it is). Modules import jax; this file does not.
WHATS = {
  'train': ('training', 'the training step, tokens/s'),
  'evaluate': ('training', 'the evaluation step, tokens/s'),
  'loop': ('loop', "the training step within a whole run, and the host's share of it"),
  'decode': ('decoding', 'continuing prompts, new tokens/s'),
  'data': ('pipeline', 'text to batches, tokens/s, and memory'),
  'start': ('starting', 'process start to first step, cold and warm'),
  'memory': ('footprint', "the step's memory by the compiled program's own account"),
}


@dataclass(frozen=True)
class Asked:
  """What to measure, of a resolved config. Times in seconds."""

  what: str
  config: Config
  seconds: float = 10.0
  prompt_tokens: int = 32
  new_tokens: int = 256
  beams: int = 0
  corpus_mb: float = 20.0
  profile: str = ''  # folder for a trace; empty: none

  def to_json(self) -> dict:
    """What `from_json` reads."""
    return {**self.__dict__, 'config': self.config.to_json()}

  @staticmethod
  def from_json(tree: dict) -> Asked:
    """The inverse of `to_json`."""
    return Asked(**tree | {'config': Config.from_json(tree['config'])})


@dataclass(frozen=True)
class Measure:
  """A prepared measurement.

  turn: measures once more; its facts have tokens_per_s, or what else `rate` reads. step: runs once
  and waits, to be traced. origins: of its operations, for a trace. facts: what does not change.
  """

  turn: Callable[[], dict]
  step: Callable[[], None] | None = None
  origins: dict[str, str] = field(default_factory=dict)
  facts: dict = field(default_factory=dict)


def prepare(asked: Asked) -> Measure:
  """Compiles, or opens, what is asked for. Starts jax."""
  module = importlib.import_module(f'transformer.measure.{WHATS[asked.what][0]}')
  return module.measure(asked)


def rate(facts: dict) -> float:
  """What is compared: the more the better. Of starts and memory the reciprocal.

  Raises KeyError where facts hold none of what is compared.
  """
  if 'tokens_per_s' in facts:
    return float(facts['tokens_per_s'])
  for name in ('step_ms', 'first_step_s', 'step_peak_mb'):
    if name in facts:
      return 1 / float(facts[name])
  raise KeyError('tokens_per_s')
