"""Checkpoints by orbax: the newest and the best are kept; a save is complete or does not exist.

Of several processes each writes and reads its part, and all call the same methods in one order.
"""

from __future__ import annotations

import errno
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from transformer import checksums, count, hosts
from transformer.config import Config
from transformer.errors import UserError
from transformer.params import merge, path_of
from transformer.runs import first_difference, saved_steps
from transformer.state import TrainState

_SAVED = ('step', 'params', 'opt_state', 'model_state', 'ema', 'key', 'bad_steps', 'skipped')


class Checkpoints:
  """The checkpoints of one run, in `folder`. Saves run beside the training that follows them."""

  def __init__(self, folder: Path, keep_last: int = 1, keep_best: int = 1):
    import orbax.checkpoint as ocp  # seconds to import, and not needed to train without saving
    from orbax.checkpoint import checkpoint_managers as managers

    logging.getLogger('absl').setLevel(logging.WARNING)  # orbax tells of every file it touches
    self._ocp, self._folder = ocp, folder.absolute()
    self._unsealed: int | None = None  # a step that has no checksums yet
    best = managers.BestN(
      get_metric_fn=lambda metrics: metrics['eval/loss'],
      reverse=True,  # orbax keeps the end of the order
      n=keep_best,
      keep_checkpoints_without_metrics=False,
    )
    keep = managers.AnyPreservationPolicy([managers.LatestN(keep_last), best])
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(preservation_policy=keep, cleanup_tmp_directories=True),
    )

  def save(self, state: TrainState, host: dict, metrics: dict[str, float] | None) -> None:
    """Starts saving `state` and plain `host` data under the state's step.

    metrics: of an evaluation at this very step, or None. Returns before the save is complete.
    """
    step = int(state.step)
    if step == self._manager.latest_step():
      return
    args = self._ocp.args.Composite(
      state=self._ocp.args.StandardSave(_saved(state)), host=self._ocp.args.JsonSave(host)
    )
    self.wait()
    self._manager.save(step, args=args, metrics=metrics)
    self._unsealed = step

  @property
  def empty(self) -> bool:
    """Whether there is nothing to restore."""
    return hosts.share(lambda: self._manager.latest_step() is None)

  def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict] | None:
    """The newest state (or that of `step`) and its host data, or None where there is none.

    like: a state of the wanted shapes and placement; gives `hyper`, which is not saved.
    A newest one that is damaged is set aside as '<step>.damaged' for the one before, if any.
    Raises UserError naming the folder if none can be read.
    """
    steps = hosts.share(lambda: sorted(self._manager.all_steps(), reverse=True))
    steps = steps if step is None else [step]
    for tried in steps:
      found, reason = self._tried(like, tried)
      if found:
        self._set_aside(steps[: steps.index(tried)])
        return found
      print(f'{self._folder / str(tried)}: cannot be restored: {reason}', file=sys.stderr)
    if steps:
      raise UserError(
        f'{self._folder}: no checkpoint in it can be restored ({reason}); delete it to start anew'
      )
    return None

  def _tried(self, like: TrainState, step: int) -> tuple[tuple[TrainState, dict] | None, str]:
    """What a checkpoint holds, or why it cannot be had."""
    if reason := hosts.share(lambda: checksums.damage(self._folder / str(step))):
      return None, reason
    try:
      return self._read(like, step), ''
    except Exception as e:  # orbax and what it stands on raise all kinds
      if jax.process_count() > 1 or _may_pass(e):
        raise  # the others may have read their part; and it may be read another time
      return None, str(e).partition('\n')[0][:200] or type(e).__name__

  def _set_aside(self, damaged: list[int]) -> None:
    """Renames checkpoints, which the manager then no longer knows of."""
    if damaged:
      for step in damaged if hosts.first() else ():
        aside = self._folder / f'{step}.damaged'
        shutil.rmtree(aside, ignore_errors=True)
        (self._folder / str(step)).rename(aside)
      hosts.gather('')
      self._manager.reload()

  def _read(self, like: TrainState, step: int) -> tuple[TrainState, dict]:
    target = jax.tree.map(self._ocp.utils.to_shape_dtype_struct, _saved(like))
    args = self._ocp.args.Composite(
      state=self._ocp.args.StandardRestore(target), host=self._ocp.args.JsonRestore()
    )
    found = self._manager.restore(step, args=args)
    return like.replace(**found.state), found.host

  def wait(self) -> None:
    """Returns once every save is complete, and its checksums are kept."""
    self._manager.wait_until_finished()
    step, self._unsealed = self._unsealed, None
    if step is not None and hosts.first():
      checksums.write(self._folder / str(step))

  def close(self) -> None:
    """Waits and lets go of the folder."""
    try:
      self.wait()
    finally:
      self._manager.close()


def load_params(
  folder: Path, step: int | None = None, config: Config | None = None
) -> tuple[int, dict[str, Any]]:
  """(step, parameters as NumPy arrays) of the newest checkpoint in a `checkpoints` folder.

  The moving average of the parameters where the run keeps one. Raises UserError naming the folder
  if there is no checkpoint, it is not whole, or it is not of the model that `config` describes.
  """
  steps = saved_steps(folder)
  if not steps or (step is not None and step not in steps):
    there = f'; there are those of {", ".join(map(str, steps))}' if steps else ''
    which = '' if step is None else f' of step {step}'
    raise UserError(f'{folder}: no checkpoint{which} in it{there}')
  step = steps[-1] if step is None else step
  if reason := checksums.damage(folder / str(step)):
    raise UserError(
      f'{folder}: checkpoint {step} is not whole ({reason}); take another step, or train that run '
      'anew'
    )
  with _checkpointer() as reader:
    path = folder.absolute() / str(step) / 'state'
    try:
      tree = reader.metadata(path).item_metadata
      restore = jax.tree.map(lambda m: np.zeros(m.shape, m.dtype), dict(tree))
      found = reader.restore(path, restore)
    except Exception:  # orbax and what it stands on raise all kinds
      raise UserError(
        f'{folder}: checkpoint {step} is not whole; take another step, or train that run anew'
      ) from None
  params = merge(found.get('ema') or found['params'], found.get('model_state') or {})
  if config:
    _check_shapes(config, params, f'{folder}: checkpoint {step}')
  return step, params


def _check_shapes(config: Config, params: dict, what: str) -> None:
  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  shapes = {path_of(path): leaf.shape for path, leaf in leaves}
  if differs := first_difference(shapes, count.shapes(config) | count.kept(config)):
    path, there, wanted = differs
    raise UserError(
      f'{what} is not of the config.json beside it: tensor {path} is {there}, by that file '
      f'{wanted}; put back the config.json of that run'
    )


def save_state(path: Path, state: TrainState) -> None:
  """Writes one state apart from a run's checkpoints; returns once it is complete."""
  with _checkpointer() as writer:
    writer.save(path.absolute(), _saved(state))


def load_state(path: Path, like: TrainState) -> TrainState:
  """Reads one state, of a checkpoint or of `save_state`. like: as of `Checkpoints.restore`."""
  import orbax.checkpoint as ocp

  target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _saved(like))
  with _checkpointer() as reader:
    return like.replace(**reader.restore(path.absolute(), target))


def _checkpointer() -> Any:
  import orbax.checkpoint as ocp

  logging.getLogger('absl').setLevel(logging.ERROR)  # it misses metadata it does not need
  return ocp.StandardCheckpointer()


def _saved(state: TrainState) -> dict:
  return {name: getattr(state, name) for name in _SAVED}


def _may_pass(e: Exception) -> bool:
  """Whether a restore has failed for want of memory or files, and not for what it has read."""
  passing = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
  return isinstance(e, MemoryError) or (
    e.errno in passing if isinstance(e, OSError) else 'RESOURCE_EXHAUSTED' in str(e)
  )
