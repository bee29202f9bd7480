"""Bytes that training a resolved config holds from step to step; activations are in tensors.py."""

from __future__ import annotations

import re
from math import prod

from transformer import axes, count, parametrization, spec
from transformer.config import Config


def state(config: Config) -> dict[str, int]:
  """Bytes of float32, over all devices: 'parameters', their 'gradient', the optimizer's 'moments'.

  And 'average' with --optim.ema, 'kept by routers' what no gradient changes.
  """
  shapes, numbers = count.shapes(config), count.params(config)
  optimizer = spec.parse('optim.name', config.optim.name)
  moments = sum(_moments(optimizer, path, shape) for path, shape in shapes.items())
  found = {'parameters': 4 * numbers, 'gradient': 4 * numbers, 'moments': 4 * moments}
  if config.optim.ema:
    found['average'] = 4 * numbers
  if kept := count.kept(config):
    found['kept by routers'] = 4 * sum(map(prod, kept.values()))
  return found


def _moments(optimizer: object, path: str, shape: tuple[int, ...]) -> int:
  """Numbers an optimizer keeps of one parameter between steps."""
  if optimizer.variant == 'adafactor':
    return _factored(optimizer, path, shape)
  each = {'adamw': 2, 'adam': 2, 'sgd': 1, 'lion': 1}
  each['muon'] = 1 if parametrization.hidden(path) else each['adam']
  return each[optimizer.variant] * prod(shape)


def _factored(optimizer: object, path: str, shape: tuple[int, ...]) -> int:
  """A row and a column of a matrix whose heads and head width are one dimension, layer by layer."""
  stack = len(axes.stack_of(path))
  letters, layers, shape = axes.letters(path)[stack:], prod(shape[:stack]), shape[stack:]
  if heads := re.search('[NK][HW]', letters):
    shape = (*shape[: heads.start()], prod(shape[slice(*heads.span())]), *shape[heads.end() :])
  if len(shape) < 2 or min(shape) < optimizer.factor_from:
    return layers * prod(shape)
  return layers * sum(shape)
