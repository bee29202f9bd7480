"""One step of a run again, tensor by tensor: how large each is, and which first is not finite."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from transformer import bad, data, diagnose, runs, train
from transformer.begin import begin
from transformer.checkpoint import load_state
from transformer.config import Config
from transformer.count import depth
from transformer.errors import UserError
from transformer.layers import ORDER, order_name
from transformer.state import TrainState

STAGES = ('forward', 'loss', 'gradient', 'gradient norm', 'update', 'new weights')


@dataclass(frozen=True)
class Tensor:
  """One tensor of a step. layer: None outside of layers. largest, rms: of |x|."""

  stage: str
  name: str
  layer: int | None
  largest: float
  rms: float
  finite: bool


def replay(
  folder: Path, config: Config, step: int, walked: Callable[[int, int], None]
) -> list[Tensor]:
  """The tensors of step `step` of the run in `folder`, in the order they are computed.

  That is: forward, then gradients from the last layer to the first, then each parameter's update.
  walked: is told how many steps of how many were repeated to get there. Raises UserError if the
  run's data are not what they were.
  """
  program = train.program(config)
  opened = functools.cache(lambda: _data(folder, config))
  state, at = _state_before(folder, config, program, step, opened)
  for i in range(at, step - 1):
    walked(i - at, step - 1 - at)
    state, _ = program.train_step(state, program.put(opened().train_batch(i)))
  batch = bad.kept_batch(folder, step) or program.batch(opened().train_batch(step - 1))
  look = program.executor.compile_whole(functools.partial(diagnose.examine, config))
  return _in_order(config, jax.device_get(look(state, batch)))


def _data(folder: Path, config: Config) -> data.Data:
  opened = data.load(config)
  then = runs.provenance(folder).get('data', {}).get('fingerprint')
  if then != opened.fingerprint:
    raise UserError(
      f'--data.source={config.data.source}: is not what {folder} was trained on, so its steps '
      'cannot be repeated'
    )
  return opened


def _state_before(
  folder: Path,
  config: Config,
  program: train.Program,
  step: int,
  opened: Callable[[], data.Data],
) -> tuple[TrainState, int]:
  """The nearest state before a step that can be had, and its own step."""
  fresh = program.init(config)
  host = program.executor.fetch(fresh)
  for saved, path in bad.states_before(folder, step).items():
    try:
      return program.executor.place(load_state(path, host).replace(hyper=host.hyper)), saved
    except Exception as e:  # orbax and what it stands on raise all kinds
      reason = str(e).partition('\n')[0][:200] or type(e).__name__
      print(f'{path}: cannot be restored: {reason}', file=sys.stderr)
  origin = runs.origin(config)
  if origin is None:
    return train.with_counts(config, program, opened(), fresh), 0
  host, _ = begin(config, origin, host)
  if int(host.step) >= step:
    raise UserError(f'--step={step}: the run began at step {int(host.step)}, of another one')
  return program.executor.place(host), int(host.step)


def _in_order(config: Config, seen: dict) -> list[Tensor]:
  found = []
  for stage in STAGES:
    tensors = [
      Tensor(stage, name, layer, *numbers)
      for name, size in seen[stage].items()
      for layer, *numbers in _numbers(size)
    ]
    layered = [_rank(config, t.name) for t in tensors if t.layer is not None]

    def place(t: Tensor, first: float = min(layered, default=0)) -> tuple:
      rank = _rank(config, t.name)
      if t.layer is not None:
        return (1, t.layer, rank)
      if t.name.startswith('encoder_norm'):
        return (1, depth(config, 'encoder_layers') - 0.5, rank)
      shared = t.name.startswith('ffn/')  # its gradient is a sum, complete with the first layer's
      return (0 if rank < first or shared else 2, 0, rank)

    found += sorted(tensors, key=place, reverse=stage == 'gradient')
  return found


def _numbers(size: diagnose.Size) -> list[tuple[int | None, float, float, bool]]:
  """(layer, largest, rms, finite) of one tensor, or of those layers that have it."""
  names = ('largest', 'sum_abs', 'sum_squares', 'count', 'finite')
  rows = zip(*(np.atleast_1d(size[name]) for name in names), strict=True)
  found = []
  for i, (largest, total, squares, count, finite) in enumerate(rows):
    # A largest value may be one of those that are finite; a sum is as infinite as its worst part.
    if count:
      layer = i if np.ndim(size['count']) else None
      top = float(largest if finite else total)
      found.append((layer, top, math.sqrt(squares / count), bool(finite)))
  return found


def _rank(config: Config, name: str) -> float:
  """Where a tensor stands in the forward pass; a parameter stands with what it helps to compute."""
  owner, _, leaf = name.rpartition('/')
  for known in (order_name(name.removesuffix('_bias')), f'{owner.rpartition("/")[2]}ed'):
    if known in ORDER:
      stream = f'stream_{known.removesuffix("_normed")}'
      after = config.model.norm_placement == 'post' and stream in ORDER
      return ORDER.index(stream) - 0.5 if after else ORDER.index(known)
  if owner in ('embed', 'positions', 'types') or owner.startswith('source_'):
    return -1
  if owner == 'embed_norm':
    return -1
  if owner.endswith(('query_norm', 'key_norm')):
    cross = 'cross_attention/' * ('cross_attention' in owner)
    return ORDER.index(f'{cross}scores') - 0.5
  if owner in ('head', 'head_norm'):
    return ORDER.index('logits') - 0.5
  if owner == 'unembed':
    return len(ORDER)
  middle = leaf.startswith('middle_')  # what is left are parameters of the activation
  return ORDER.index('middle_hidden' if middle else 'hidden') - 0.5
