"""A run's folder as others find it, and the run that another one begins from. No jax."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from transformer import count, plugin, spec
from transformer.config import Config, config_hash
from transformer.errors import UserError


def cell_folder(folder: Path, flag: str = 'checkpoint') -> Path:
  """The folder of a run: `folder` itself, or the only cell of an experiment's.

  flag: that named it. Raises UserError naming both where there is none, or more than one.
  """
  cells = sorted(path.parent for path in (folder / 'cells').glob('*/config.json'))
  if len(cells) > 1:
    raise UserError(
      f'--{flag}={folder}: holds {len(cells)} cells; name one of them, as in --{flag}={cells[0]}'
    )
  folder = cells[0] if cells else folder
  if not (folder / 'config.json').exists():
    raise UserError(f'--{flag}={folder}: no config.json in it; give the folder of a run')
  return folder


def read_config(folder: Path) -> Config:
  """The resolved config of the run in `folder`, whose plugin is loaded.

  Raises UserError naming the file.
  """
  path = folder / 'config.json'
  try:
    config = Config.from_json(json.loads(path.read_text(encoding='utf-8')), str(path))
  except ValueError:
    raise UserError(f'{path}: is not JSON; give the folder of another run') from None
  plugin.load(config.plugin)
  return config


def provenance(folder: Path) -> dict:
  """The run's provenance.json; empty if there is none that can be read."""
  return _read(folder / 'provenance.json')


def resolved(workdir: str) -> dict:
  """An experiment's resolved.json, what its base came to; empty if there is none."""
  return _read(Path(workdir) / 'resolved.json')


def _read(path: Path) -> dict:
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    return {}


def saved_steps(folder: Path) -> list[int]:
  """The steps of which `folder` holds a complete checkpoint, in order."""
  return sorted(int(path.name) for path in folder.glob('*') if path.name.isdecimal())


def first_difference(one: dict[str, tuple], other: dict[str, tuple]) -> tuple[str, str, str] | None:
  """The first path of which two tables of shapes differ, and both shapes; None if none does."""
  for path in [*one, *other]:
    if one.get(path) != other.get(path):
      return path, *(str(shapes.get(path, 'absent')) for shapes in (one, other))
  return None


@dataclass(frozen=True)
class Origin:
  """A checkpoint that --train.init_from names: the cell's folder, its config, the step."""

  folder: Path
  config: Config
  step: int

  @property
  def identity(self) -> str:
    """Sixteen hex digits that are others if the origin is trained anew by other code or data."""
    record = provenance(self.folder)
    made = [record.get('code'), (record.get('data') or {}).get('fingerprint')]
    before = (record.get('origin') or {}).get('identity')
    told = json.dumps([config_hash(self.config), self.step, *made, before])
    return hashlib.sha256(told.encode()).hexdigest()[:16]

  def tokenizer(self) -> str | None:
    """Its tokenizer as it was saved; None if it was not trained on text."""
    path = self.folder / 'tokenizer.json'
    return path.read_text(encoding='utf-8') if path.exists() else None

  def describe(self, config: Config) -> str:
    """One line on what a run of `config` takes over, and what is reset."""
    whose = f'{self.folder.name} at step {self.step}'
    mine, theirs = (c.moe.router if c.moe.experts else '' for c in (config, self.config))
    router = f'; --moe.router={mine} takes the place of {theirs}' if mine != theirs else ''
    if config.train.init == 'continue':
      return (
        f'--train.init=continue: goes on from {whose} with its weights and optimizer state, on the '
        f'schedule and in the data from step {self.step} of {config.train.steps} on; '
        f"reset are the noise, which is this run's seed's, and the count of skipped steps{router}"
      )
    weights = 'weights (its moving average)' if self.config.optim.ema else 'weights'
    return (
      f'--train.init=finetune: begins with the {weights} of {whose}; '
      f'optimizer state, step, schedule and place in the data are reset{router}'
    )


def origin(config: Config) -> Origin | None:
  """What a run of a resolved config begins from; None if from fresh weights.

  Raises UserError naming the flag if there is no such run or checkpoint, or it does not fit.
  """
  asked = config.train.init_from
  if not asked:
    return None
  name, at, step = asked.rpartition('@')
  folder, step = (Path(name), step) if at and step.isdecimal() else (Path(asked), '')
  folder = cell_folder(folder, 'train.init_from')
  steps = saved_steps(folder / 'checkpoints')
  if not steps or (step and int(step) not in steps):
    there = f'there are those of {", ".join(map(str, steps))}' if steps else 'train that run first'
    which = f' of step {step}' if step and steps else ''
    raise UserError(f'--train.init_from={asked}: no checkpoint{which} in it; {there}')
  found = Origin(folder, read_config(folder), int(step or steps[-1]))
  _check(config, found)
  return found


def retrained(config: Config, identity: str | None) -> bool:
  """Whether what a config begins from is another one by now than that of this identity."""
  try:
    found = origin(config)
  except UserError:
    return False  # it is gone, or cannot be told
  return found is not None and found.identity != identity


def _check(config: Config, found: Origin) -> None:
  asked = config.train.init_from
  mine, theirs = (count.shapes(c) | count.kept(c) for c in (config, found.config))
  if differs := first_difference(mine, theirs):
    path, here, there = differs
    raise UserError(
      f'--train.init_from={asked}: its tensor {path} is {there}, here {here}; give the shape '
      f'of that run, which is in {found.folder / "config.json"}'
    )
  if config.train.init != 'continue':
    return
  if config.train.steps <= found.step:
    raise UserError(
      f'--train.steps={config.train.steps}: {asked} stands at step {found.step} already; '
      'ask for more, or --train.init=finetune'
    )
  names = [spec.parse('optim.name', c.optim.name).variant for c in (found.config, config)]
  if names[0] != names[1]:
    raise UserError(
      f'--optim.name={names[1]}: cannot continue from the state of {names[0]} in {asked}; '
      f'choose --optim.name={names[0]} or --train.init=finetune'
    )
