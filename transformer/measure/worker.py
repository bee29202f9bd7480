"""One side of a measurement, a process of its own: it prepares, then takes a turn when told.

Reads JSON on standard input: a line that says what to measure, then a line for each turn. Answers
each with a line of JSON. What libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterator
from typing import IO

from transformer import plugin
from transformer.errors import UserError


def main() -> int:
  """Serves one side until standard input ends."""
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  return serve(sys.stdin, answers)


def serve(told: IO[str], answers: IO[str]) -> int:
  """The same over two streams of text. Returns the exit status."""

  def say(facts: dict) -> None:
    answers.write(json.dumps(facts) + '\n')
    answers.flush()

  try:
    for facts in _facts(json.loads(told.readline()), told):
      say(facts)
  except UserError as e:
    say({'error': str(e)})
    return 2
  return 0


def _facts(asked: dict, turns: IO[str]) -> Iterator[dict]:
  """First what the machine can do, or is; then a turn's facts a line."""
  if asked['what'] == 'ceilings':
    from transformer.measure.ceilings import ceilings

    yield ceilings(map(tuple, asked['shapes']), asked['seconds']) | machine()
    return
  from transformer.measure import measures, profile

  plugin.load(asked['config'].get('plugin', ''))
  wanted = measures.Asked.from_json(asked)
  made = measures.prepare(wanted)
  yield {'ready': wanted.what}
  for _ in turns:
    facts = made.facts | made.turn() | {'peak_rss_mb': peak_rss_mb()}
    if wanted.profile:
      facts['profile'] = profile.costliest(wanted.profile, made.step, made.origins)
    yield facts | machine()


def machine() -> dict:
  """Devices, processor and versions. Starts jax."""
  import jax

  from transformer import provenance

  devices = jax.devices()
  return {
    'device': f'{len(devices)} x {devices[0].device_kind}',
    'cpu': provenance.cpu_model(),
    'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
    'versions': {k: v for k, v in provenance.versions().items() if k in ('jax', 'flax', 'optax')},
  }


def peak_rss_mb() -> float:
  """The most memory this process has had."""
  scale = 2**20 if sys.platform == 'darwin' else 2**10
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


if __name__ == '__main__':
  sys.exit(main())
