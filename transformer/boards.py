"""Where rows of metrics go besides metrics.jsonl: TensorBoard files, Weights & Biases. No jax."""

from __future__ import annotations

import importlib.util
import time
import uuid
from pathlib import Path
from typing import Protocol

from transformer.config import Config, config_hash
from transformer.errors import UserError
from transformer.files import replacing


class Board(Protocol):
  """Takes the rows of one run."""

  def write(self, step: int, values: dict[str, float]) -> None: ...

  def close(self) -> None: ...


def require(config: Config) -> None:
  """Raises UserError naming the extra where a board is asked for whose package is not installed."""
  for name in ('tensorboard', 'wandb'):
    if config.get(f'train.{name}') and not importlib.util.find_spec(name):
      raise UserError(f"--train.{name}: needs the extra: pip install 'isoffn[{name}]'")


def attach(config: Config, folder: Path, step: int) -> list[Board]:
  """The boards that `config` asks for, of the run in `folder`, which stands at `step`."""
  require(config)
  boards: list[Board] = []
  if config.train.tensorboard:
    boards.append(TensorBoard(folder / 'tensorboard', step))
  if config.train.wandb:
    boards.append(Wandb(config, folder))
  return boards


class TensorBoard:
  """Event files without TensorFlow. What lies past `step` is marked as undone."""

  def __init__(self, folder: Path, step: int):
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    self._event, self._summary = event_pb2, summary_pb2.Summary
    self._writer = EventFileWriter(str(folder))
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add(step + 1, session_log=start)

  def write(self, step: int, values: dict[str, float]) -> None:
    scalars = [self._summary.Value(tag=tag, simple_value=v) for tag, v in values.items()]
    self._add(step, summary=self._summary(value=scalars))

  def close(self) -> None:
    self._writer.close()

  def _add(self, step: int, **what: object) -> None:
    self._writer.add_event(self._event.Event(step=step, wall_time=time.time(), **what))
    self._writer.flush()


class Wandb:
  """A Weights & Biases run, the same one after a resume; its own settings are in WANDB_* variables.

  Steps that a resumed run goes through once more are dropped there, being lower than the last: they
  are equal to the bit.
  """

  def __init__(self, config: Config, folder: Path):
    import wandb

    (folder / 'wandb').mkdir(exist_ok=True)
    try:
      self._run = wandb.init(
        project=config.train.wandb,
        group=folder.absolute().parent.parent.name,
        name=folder.name,
        id=_identifier(folder / 'wandb' / 'id', config),
        resume='allow',
        dir=str(folder),
        config=config.to_json(),
      )
    except Exception as e:  # no key, no network, no such project: a class of its own each
      reason = ' '.join(str(e).split())[:200] or type(e).__name__
      raise UserError(
        f'--train.wandb={config.train.wandb}: cannot be started ({reason}); the variable '
        'WANDB_MODE=offline keeps the run on this machine'
      ) from None

  def write(self, step: int, values: dict[str, float]) -> None:
    self._run.log(values, step=step)

  def close(self) -> None:
    self._run.finish()


def _identifier(path: Path, config: Config) -> str:
  """The run's, made once: a run that is computed anew is another one."""
  if not path.exists():
    with replacing(path) as f:
      f.write(f'{config_hash(config)}-{uuid.uuid4().hex[:8]}')
  return path.read_text()
