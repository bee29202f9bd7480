"""Adaptive search by Optuna: it asks for points, cells run them, their losses are told.

The study is <workdir>/search.jsonl, Optuna's own journal; a trial is in it before its cell exists.
So a launcher that is killed and started again, or two at once, neither lose nor repeat a trial:
trial n depends on the seed, n and what has been told, and one that is under way keeps its cell.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import math
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from launch.cells import Cell, read_json, state, write_json
from launch.claims import DONE, PRUNED
from launch.files import locked
from launch.ranges import Axis, Point
from transformer.config import Config
from transformer.errors import UserError

if TYPE_CHECKING:
  import optuna

SAMPLERS, PRUNERS = ('tpe', 'random'), ('asha', 'median', 'none')
JOURNAL, FILE = 'search.jsonl', 'search.json'
_EVERY = 5.0  # seconds between writings of search.json, which reports read
_STRIDE = 100_003  # between the seeds of samplers of two studies: more than there are trials


@dataclasses.dataclass(frozen=True)
class Search:
  """What is asked: `trials` points of `axes`, each a cell by cell_of(point)."""

  axes: dict[str, Axis]
  trials: int
  sampler: str
  prune: str
  seed: int
  cell_of: Callable[[Point], Cell]

  def corners(self) -> list[Cell]:
    """The cells of all axes at their least, and at their largest: what a dry run shows."""
    points = [{name: axis.ends()[i] for name, axis in self.axes.items()} for i in (0, 1)]
    return list({cell.folder_name: cell for cell in map(self.cell_of, points)}.values())

  def to_json(self) -> dict:
    """As experiment.json tells it."""
    space = '; '.join(f'{name}={axis}' for name, axis in self.axes.items())
    return {'space': space, 'sampler': self.sampler, 'prune': self.prune}


@dataclasses.dataclass
class _Open:
  """A trial under way. given: to the launcher. reported: evaluations told to the pruner."""

  trial: optuna.Trial
  cell: Cell
  given: bool = False
  reported: int = 0


class Study:
  """A search under way, in its folder; makes cells for launch.local as a `Source`.

  record: told all cells so far, whenever there are more. Raises UserError where Optuna is missing.
  """

  def __init__(self, search: Search, workdir: Path, record: Callable[[list[Cell]], None]):
    self._search, self._workdir, self._record = search, workdir, record
    self._optuna = _library()
    self.total = search.trials
    self._open: dict[int, _Open] = {}
    self._written = 0.0
    path = workdir / JOURNAL
    lock = _Lock(path)
    with lock.held():
      _mend(path)
    storages = self._optuna.storages
    backend = storages.journal.JournalFileBackend(str(path), lock_obj=lock)
    self._study = self._optuna.create_study(
      storage=storages.JournalStorage(backend),
      study_name='search',
      load_if_exists=True,
      direction='minimize',
      pruner=_pruner(self._optuna, search.prune),
    )
    self.cells: list[Cell] = []
    for trial in self._trials():
      if set(trial.params) == set(search.axes):
        self._know(search.cell_of(self._point(trial.params)))

  def look(self, running: Collection[str], free: int) -> list[Cell]:
    """Tells what has ended or may end, takes over trials of others, asks for more.

    running: folder names of the cells that have not ended. free: how many more may be.
    """
    for number, one in list(self._open.items()):
      if one.given and one.cell.folder_name not in running:
        self._tell(number, one)
      else:
        self._watch(one)
    new = self._adopt()
    while len(new) < free and (trial := self._ask()):
      new += self._begin(trial)
    if time.monotonic() - self._written > _EVERY or not (running or new):
      self.write()
    return new

  def write(self) -> None:
    """Writes search.json: all trials, and how much each setting matters."""
    self._written = time.monotonic()
    write_json(self._workdir / FILE, self._told())

  def _ask(self) -> optuna.Trial | None:
    """The next trial; None if there are enough. Of two launchers one asks at a time."""
    with locked(self._workdir):
      number = len(self._trials())
      if number >= self.total:
        return None
      self._study.sampler = _sampler(self._optuna, self._search, number)
      trial = self._study.ask()
      self._suggested(trial)
      return trial

  def _adopt(self) -> list[Cell]:
    """The cells of trials under way that are not ours: of a launcher before us, or beside us."""
    new = []
    for frozen in self._trials():
      if frozen.number not in self._open and not frozen.state.is_finished():
        self._study.sampler = _sampler(self._optuna, self._search, frozen.number)
        new += self._begin(self._optuna.trial.Trial(self._study, frozen._trial_id))
    return new

  def _begin(self, trial: optuna.Trial) -> list[Cell]:
    """The cell of a trial, if it is to be run; one that cannot run has failed."""
    try:
      cell = self._search.cell_of(self._suggested(trial))
    except UserError as e:
      trial.set_user_attr('refused', str(e))
      self._study.tell(trial.number, state=self._state('FAIL'), skip_if_finished=True)
      return []
    one = self._open[trial.number] = _Open(trial, cell)
    self._know(cell)
    self._record(self.cells)
    one.given = True
    if state(cell.folder(self._workdir)) in ('done', 'pruned'):  # as another trial, or before
      self._tell(trial.number, one)
      return []
    return [cell]

  def _tell(self, number: int, one: _Open) -> None:
    """What has become of a trial whose cell has ended."""
    folder = one.cell.folder(self._workdir)
    self._watch(one)
    loss = (read_json(folder / DONE, strict=False) or {}).get('eval/loss')
    if isinstance(loss, float) and math.isfinite(loss):
      told = {'values': loss}
    else:
      told = {'state': self._state('PRUNED' if (folder / PRUNED).exists() else 'FAIL')}
    self._study.tell(number, skip_if_finished=True, **told)
    del self._open[number]

  def _watch(self, one: _Open) -> None:
    """Reports a cell's new evaluations; stops it if it is not worth going on with."""
    if self._search.prune == 'none':
      return
    folder = one.cell.folder(self._workdir)
    rows = list(_evaluations(folder / 'metrics.jsonl'))
    for i, (step, loss) in list(enumerate(rows, 1))[one.reported :]:
      one.reported = i
      one.trial.report(loss, i)
      last = step >= one.cell.config.train.steps
      if not last and one.trial.should_prune() and not (folder / PRUNED).exists():
        write_json(folder / PRUNED, {'step': step, 'loss': loss, 'trial': one.trial.number})
        return

  def _suggested(self, trial: optuna.Trial) -> Point:
    """The trial's point: asked of the sampler where the journal does not hold it already."""
    return self._point(
      {name: axis.suggest(trial, name) for name, axis in self._search.axes.items()}
    )

  def _point(self, params: dict[str, Any]) -> Point:
    return {name: axis.value(params[name]) for name, axis in self._search.axes.items()}

  def _know(self, cell: Cell) -> None:
    if all(cell.folder_name != known.folder_name for known in self.cells):
      self.cells.append(cell)

  def _trials(self) -> list[optuna.trial.FrozenTrial]:
    return self._study.get_trials(deepcopy=False)

  def _state(self, name: str) -> Any:
    return self._optuna.trial.TrialState[name]

  def _told(self) -> dict:
    trials = []
    for t in self._trials():
      value = t.value
      if t.state.name == 'PRUNED':
        value = t.intermediate_values.get(t.last_step)
      told = {'number': t.number, 'state': t.state.name.lower(), 'loss': value}
      trials.append({**told, 'params': t.params, **t.user_attrs})
    asked = {**self._search.to_json(), 'trials': self.total}
    return {**asked, 'importance': self._importance(), 'told': trials}

  def _importance(self) -> dict[str, float]:
    """Setting -> its share of what decides whether a trial is among the best (PED-ANOVA)."""
    complete = [t for t in self._trials() if t.state.name == 'COMPLETE']
    if len(complete) < 4 or len(self._search.axes) < 2 or len({t.value for t in complete}) < 2:
      return {}
    importance = self._optuna.importance
    evaluator = importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
    return importance.get_param_importances(self._study, evaluator=evaluator)


def needs_evaluations(search: Search, config: Config) -> None:
  """Raises UserError if there is nothing to prune by: one evaluation, at the end."""
  if search.prune != 'none' and config.train.eval_every >= config.train.steps:
    raise UserError(
      f'--prune={search.prune}: cells are judged at their evaluations, and have one, at the end; '
      f'set --train.eval_every below --train.steps={config.train.steps}, or --prune=none'
    )


def _library() -> ModuleType:
  try:
    import optuna
  except ImportError:
    raise UserError("--search: needs Optuna; pip install 'isoffn[search]'") from None
  optuna.logging.set_verbosity(optuna.logging.ERROR)
  return optuna


def _sampler(optuna: ModuleType, search: Search, number: int) -> Any:
  """A sampler whose draws depend on the seed and the trial alone, not on who asks, and when."""
  seed = (search.seed * _STRIDE + number) % 2**32
  if search.sampler == 'random':
    return optuna.samplers.RandomSampler(seed=seed)
  return optuna.samplers.TPESampler(seed=seed)


def _pruner(optuna: ModuleType, name: str) -> Any:
  """Of rungs of evaluations: 1, 3, 9 … for asha, every one for median."""
  if name == 'asha':
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
  return optuna.pruners.MedianPruner() if name == 'median' else optuna.pruners.NopPruner()


def _evaluations(path: Path) -> Iterator[tuple[int, float]]:
  """Step and loss of each evaluation in a metrics.jsonl, also while it is written."""
  try:
    lines = path.read_text(encoding='utf-8').splitlines()
  except OSError:
    return
  for line in lines:
    if '"eval/loss"' in line:
      with contextlib.suppress(ValueError, KeyError, TypeError):
        row = json.loads(line)
        yield int(row['step']), float(row['eval/loss'])


def _mend(path: Path) -> None:
  """Cuts off a last line that a crash of the machine has left half written."""
  if path.exists() and (text := path.read_bytes()) and not text.endswith(b'\n'):
    with open(path, 'r+b') as f:
      f.truncate(text.rfind(b'\n') + 1)


class _Lock:
  """Optuna's lock of a journal, as one that the kernel frees if its owner dies."""

  def __init__(self, path: Path):
    self._path, self._file = path.with_name(f'.{path.name}.lock'), None

  def acquire(self) -> bool:
    self._file = open(self._path, 'a')  # noqa: SIM115 (closed in release)
    fcntl.flock(self._file, fcntl.LOCK_EX)
    return True

  def release(self) -> None:
    self._file.close()

  @contextlib.contextmanager
  def held(self) -> Iterator[None]:
    self.acquire()
    try:
      yield
    finally:
      self.release()
