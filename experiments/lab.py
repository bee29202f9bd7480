"""What every experiment does around its question: run what is missing of its cells, report.

A script says what it varies and how a value becomes a config (paired.py); the rest is here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags as absl_flags

from experiments import plan
from experiments.plan import Experiment
from launch import engines
from launch.cells import Cell, read_json, stale, state, write_json
from transformer import boards, count, flags, runs
from transformer.config import Config, idle, result_settings
from transformer.errors import UserError

if TYPE_CHECKING:
  from rich.console import Console

  from launch import local
  from launch.search import Study
  from transformer.data import Data
  from transformer.data.corpus import Watch

FLAGS = absl_flags.FLAGS


def define_flags(name: str, **defaults: object) -> None:
  """The settings, and the flags that all experiments share."""
  flags.define(**defaults)
  flags.script_flag('str', 'workdir', f'runs/{name}', 'folder of cells, report and plots')
  flags.script_flag('str', 'on', engines.LOCAL, 'where cells run: local | slurm | kubernetes')
  flags.script_flag('bool', 'dry_run', False, 'print cells and cost, run nothing')
  flags.script_flag('bool', 'recompute', False, 'run cells again that other code or data made')
  flags.script_flag('bool', 'accept_stale', False, 'keep cells that other code or data made')


def run(experiment: Experiment) -> int:
  """Runs what is missing, writes and prints the report. Returns the exit status."""
  if not FLAGS.workdir:
    raise UserError('--workdir=: is empty; name a folder, as in --workdir=runs/x')
  out, workdir = console(), Path(FLAGS.workdir)
  is_new = not workdir.exists()
  _say_origins(experiment, workdir)
  say_idle({cell.variant: cell.config for cell in experiment.cells}.values())
  planned = _planned(experiment, workdir)
  if FLAGS.dry_run:
    plan.show(experiment, workdir, out)
    print('' if experiment.search else planned, end='')  # a search submits what it makes as it goes
    return 0
  boards.require(experiment.base)
  _check_folder(experiment, workdir)
  source = _study(experiment, workdir)
  _prepare(experiment, workdir, source.cells if source else experiment.cells)
  if FLAGS.on != engines.LOCAL and not source:
    return _submit(experiment, workdir)
  from launch import local

  launch = experiment.base.launch
  if source and FLAGS.on != engines.LOCAL:
    from launch import remote

    outcome = remote.run(FLAGS.on, workdir, launch, source)
  else:
    cells, like = ([], experiment.cells) if source else (experiment.cells, ())
    given = {'retries': launch.retries, 'source': source, 'like': like}
    outcome = local.run(workdir, cells, launch.workers, **given)
  if source:
    source.write()
  if outcome.interrupted:
    print('interrupted; the same command continues', file=sys.stderr)
    return 130
  from transformer.analysis import report

  results = report.write(workdir)
  if reason := _refusal(outcome, workdir):
    if is_new and experiment.base.parallel.distributed == 'off':
      shutil.rmtree(workdir)
    raise UserError(reason)
  report.console(results, out)
  return 1 if outcome.failed else 0


def _study(experiment: Experiment, workdir: Path) -> Study | None:
  """The search that makes an experiment's cells, as it stands in the folder."""
  if not experiment.search:
    return None
  from launch.search import Study

  def record(cells: list[Cell]) -> None:
    told = dataclasses.replace(experiment, cells=cells)
    write_json(workdir / 'experiment.json', _record(told))

  return Study(experiment.search, workdir, record)


def _planned(experiment: Experiment, workdir: Path) -> str:
  """What a cluster would be handed of what is left: refused now, before data are prepared."""
  if FLAGS.on == engines.LOCAL:
    return ''
  job = engines.job(workdir, experiment.cells)
  return engines.engine(FLAGS.on).plan(job) + '\n' if job.cells else ''


def _submit(experiment: Experiment, workdir: Path) -> int:
  """Hands what is not done, and not handed over yet, to a cluster, and goes."""
  count = engines.submit(FLAGS.on, experiment.cells, workdir)
  done = sum(state(cell.folder(workdir)) == 'done' for cell in experiment.cells)
  left = len(experiment.cells) - done - count
  told = [f'{done} done'] * bool(done) + [f'{left} running or queued already'] * bool(left)
  print(f'{count} cells submitted to {FLAGS.on}' + ''.join(f', {part}' for part in told))
  print(f'python -m launch.status --workdir={workdir}')
  return 0


def console() -> Console:
  """Standard output. A file or a pipe has room for every column of a table."""
  from rich.console import Console

  narrow = sys.stdout.isatty() or 'COLUMNS' in os.environ
  return Console(width=None if narrow else 120)


def _say_origins(experiment: Experiment, workdir: Path) -> None:
  """What cells that are yet to begin take over from other runs, and what is reset."""
  told = {}
  for cell in experiment.cells:
    if not cell.config.train.init_from:
      continue
    folder = cell.folder(workdir)
    begun = runs.saved_steps(folder / 'checkpoints') or state(folder) == 'done'
    if not begun and (origin := runs.origin(cell.config)):
      told[origin.describe(cell.config)] = None
  for line in told:
    print(line, file=sys.stderr)


def say_idle(configs: Iterable[Config]) -> None:
  """A line for each flag that was given and changes nothing: what it acts on is in none of them."""
  for path in engines.unread(FLAGS.on) if 'on' in FLAGS else ():
    if FLAGS[path].present:
      print(f'--{path}: changes nothing on {FLAGS.on}', file=sys.stderr)
  first, *others = (idle(config) for config in configs)
  for path, default in first.items():
    everywhere = all(path in other for other in others)
    if everywhere and FLAGS[path].present and FLAGS[path].value != default:
      print(f'--{path}: changes nothing here, where there is nothing it acts on', file=sys.stderr)


def _refusal(outcome: local.Outcome, workdir: Path) -> str:
  """Why all cells of a launch were refused: a mistake that only showed where there are devices."""
  if outcome.done:
    return ''
  failed = [read_json(c.folder(workdir) / 'failed.json', strict=False) for c in outcome.failed]
  refused = [f['message'] for f in failed if f and f['cause'] == 'refused']
  return refused[0] if refused and len(refused) == len(failed) else ''


def _prepare(experiment: Experiment, workdir: Path, cells: Sequence[Cell]) -> None:
  """Data, the folder's own files and reference losses; refuses cells of other code or data.

  cells: of the experiment, or those there are of a search.
  """
  from transformer.data import progress

  with progress.shown() as watch:
    watch('preparing data', 0, 0)
    try:
      opened = _load([*cells, *experiment.cells], experiment.base, watch)
    except UserError:
      with contextlib.suppress(OSError):
        workdir.rmdir()  # if we have just made it: it is empty
      raise
    old = stale(cells, workdir, lambda config: opened[_source(config)].fingerprint)
    if old and FLAGS.recompute and experiment.search:
      raise UserError(f'--recompute: a search knows what it has found; choose another {workdir}')
    if old and FLAGS.recompute:
      for cell in old:
        _forget(cell.folder(workdir))
    elif old and not FLAGS.accept_stale:
      raise UserError(
        f'{workdir}: {len(old)} of {len(cells)} cells are done or begun, but by other '
        'code or from other data than now; --recompute runs them again, --accept_stale keeps them'
      )
    told = dataclasses.replace(experiment, cells=cells)
    write_json(workdir / 'experiment.json', _record(told))
    write_json(workdir / 'resolved.json', experiment.base.to_json())
    if len({(_source(c.config), c.config.train.steps) for c in experiment.cells}) > 1:
      (workdir / 'references.json').unlink(missing_ok=True)  # not all cells see what they would
    else:
      watch('fitting n-gram references', 0, 0)
      _write_references(experiment, workdir, opened[_source(experiment.base)])


def _source(config: Config) -> Hashable:
  """Equal for configs of the same data."""
  return config.data, config.model.vocab_size, config.model.architecture


def _load(cells: Sequence[Cell], base: Config, watch: Watch) -> dict[Hashable, Data]:
  """The data of all cells, by `_source`; that of the base in the base's own order."""
  from transformer import data

  configs = {_source(c): c for c in (*(x.config for x in cells), base)}
  return {key: data.load(config, watch) for key, config in configs.items()}


def _record(experiment: Experiment) -> dict:
  script = Path(sys.argv[0])
  module = f'{"launch" if script.parent.name == "launch" else "experiments"}.{script.stem}'
  once = ('--recompute', '--accept_stale', '--norecompute', '--noaccept_stale')
  args = [arg for arg in sys.argv[1:] if not arg.startswith(once)]
  return {
    'name': experiment.name,
    'question': experiment.question,
    'variable': experiment.variable,
    'baseline': experiment.baseline,
    'match': experiment.match,
    'budget': experiment.budget,
    'absorb': experiment.absorb,
    'by': experiment.by,
    'search': experiment.search.to_json() if experiment.search else None,
    'command': shlex.join(['python', '-m', module, *args]),
    'asked': experiment.asked.to_json(),
    'base': experiment.base.to_json(),
    'cells': [
      {
        'name': cell.name,
        'variant': cell.variant,
        'seed': cell.seed,
        'folder': cell.folder_name,
        'matched': cell.variant not in experiment.apart,
        'params': count.params(cell.config),
        'active_params': count.active_params(cell.config),
        'looks_ahead': count.looks_ahead(cell.config),
        **dict(zip(('experts', 'experts_per_token'), count.experts(cell.config), strict=True)),
        'flops_per_token': count.flops_per_token(cell.config),
        'd_ff': cell.config.ffn.d_ff,
        'encoder_d_ff': count.encoder_d_ff(cell.config),
        'ratio': cell.config.ffn.ratio,
        'd_model': cell.config.model.d_model,
        'num_layers': cell.config.model.num_layers,
        'num_heads': cell.config.model.num_heads,
      }
      for cell in experiment.cells
    ],
  }


def _check_folder(experiment: Experiment, workdir: Path) -> None:
  """Refuses a folder of another experiment; more values or more seeds of the same are welcome."""
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=workdir).close()
  except OSError as e:
    raise UserError(f'--workdir={workdir}: cannot be written ({e.strerror})') from None
  path = workdir / 'experiment.json'
  there = read_json(path)
  if there is None:
    return
  if missing := {'name', 'match', 'variable', 'absorb', 'asked'} - there.keys():
    raise UserError(f'{path}: lacks {min(missing)!r}; delete it, or choose another --workdir')
  mine = _identity(_record(experiment), experiment.asked)
  theirs = _identity(there, Config.from_json(there['asked'], str(path)))
  for key in [*mine, *sorted(theirs.keys() - mine.keys())]:
    if mine.get(key) != theirs.get(key):
      shown = [d.get(key, 'its default') for d in (theirs, mine)]
      raise UserError(
        f'--workdir={workdir}: holds runs of another configuration ({key} is {shown[0]} there, '
        f'{shown[1]} asked); choose another folder'
      )


def _identity(record: dict, asked: Config) -> dict:
  """What must agree for two commands to share a folder, beside seeds and the values compared.

  --baseline decides no cell but through the budget.
  """
  told = {'experiment': 'name', 'what varies': 'variable', '--match': 'match'}
  told |= {'what is swept': 'by', '--absorb': 'absorb', f'budget of {record["match"]}': 'budget'}
  searched = (record.get('search') or {}).get('space', '')
  same = {k: record.get(v) or '' for k, v in told.items()} | {'--search': searched}
  return same | result_settings(asked)


def _write_references(experiment: Experiment, workdir: Path, opened: Data) -> None:
  """Unigram and bigram losses fitted on what seed 0 sees: one epoch or 4 M tokens at most.

  Of pairs they are those of the targets alone; a token that was masked is told by more than those
  before it, so an encoder has none.
  """
  import numpy as np

  from transformer.analysis import ngram

  base = experiment.base
  if base.model.architecture == 'encoder':
    return
  steps, first = base.train.steps, base.data.source_len
  key = f'{opened.fingerprint} {steps} {base.data.batch_size} {base.data.seq_len}'
  there = read_json(workdir / 'references.json', strict=False)
  if there and there.get('key') == key:
    return
  epoch = len(opened.rows) // base.data.batch_size
  enough = 4_000_000 // (base.data.batch_size * base.data.seq_len) + 1
  batches = max(1, min(steps, epoch, enough))
  seen = np.concatenate([opened.train_batch(i)[:, first:] for i in range(batches)])
  held_out = np.concatenate(list(opened.eval_batches()))[:, first:]
  record: dict = {'key': key, 'tokens': int((seen[:, 1:] >= 0).sum())}
  targets = int((held_out[:, 1:] >= 0).sum())
  for name, fit in (('unigram', ngram.unigram), ('bigram', ngram.bigram)):
    record[name] = nats = float(fit(seen, held_out, base.model.vocab_size))
    if opened.held_out_bytes:
      bits = nats * targets / math.log(2) / opened.held_out_bytes
      record[f'{name}_bits_per_byte'] = bits
  write_json(workdir / 'references.json', record)


def _forget(folder: Path) -> None:
  """Removes a cell's results so that it runs anew."""
  names = ('done.json', 'failed.json', 'metrics.jsonl', 'provenance.json', 'heartbeat.json')
  for name in (*names, 'pruned.json', 'samples.json', 'experts.json', 'log.txt'):
    (folder / name).unlink(missing_ok=True)
  for name in ('bad', 'checkpoints', 'tensorboard', 'wandb'):
    shutil.rmtree(folder / name, ignore_errors=True)
