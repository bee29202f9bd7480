"""From a process's start to its first step: on a machine that has nothing yet, then again."""

from __future__ import annotations

import tempfile

from transformer.measure import fresh
from transformer.measure.measures import Asked, Measure


def measure(asked: Asked) -> Measure:
  """A turn starts processes that do what a worker does up to its first step.

  cold: prepared data, tokenizer and compiled programs are all missing. first_step_s: the median of
  the starts after it, in fresh processes that find them.
  """

  def turn() -> dict:
    with tempfile.TemporaryDirectory() as cache:
      cold = fresh.ask('step', asked.config, cache)
      warm = [fresh.ask('step', asked.config, cache)]
      while sum(one['first_step_s'] for one in warm) < asked.seconds:
        warm.append(fresh.ask('step', asked.config, cache))
    warm.sort(key=lambda one: one['first_step_s'])
    middle = warm[len(warm) // 2]
    return {
      'first_step_s': middle['first_step_s'],
      'first_step_s_range': [warm[0]['first_step_s'], warm[-1]['first_step_s']],
      'compile_s': cold['compiled_s'] - cold['data_s'],
      'cold': cold,
      'warm': middle,
    }

  return Measure(turn)
