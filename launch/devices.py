"""How accelerators are dealt out: a worker is told which of them are its own."""

from __future__ import annotations

import os

from transformer.hardware import Kind


def dealt(kind: Kind, workers: int, each: int) -> list[dict[str, str]]:
  """An environment for each of several workers: `each` devices of its own, or a share of one.

  Where there are more workers than devices they share them, and their memory, evenly.
  """
  names = kind.devices()
  groups = [names[i : i + each] for i in range(0, len(names) - each + 1, each)] or [names]
  share = -(-workers // len(groups))  # on the fullest
  found = []
  for i in range(workers):
    group = groups[i % len(groups)]
    env = {kind.variable: ','.join(group)} if group else {}
    if kind.name == 'tpu' and len(group) == 1:  # one chip of a host is a whole topology
      env |= {'TPU_CHIPS_PER_PROCESS_BOUNDS': '1,1,1', 'TPU_PROCESS_BOUNDS': '1,1,1'}
    told = 'XLA_PYTHON_CLIENT_MEM_FRACTION' in os.environ
    if share > 1 and kind.name != 'tpu' and not told:  # each would take three quarters
      env['XLA_PYTHON_CLIENT_MEM_FRACTION'] = f'{0.9 / share:.3f}'
    found.append(env)
  return found
