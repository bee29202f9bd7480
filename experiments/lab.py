"""What every experiment does around its question: plan cells, run what is missing, report.

A script says what it varies and how a value becomes a config; the rest is here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags as absl_flags

from launch.cells import Cell, read_json, stale, state, write_json
from transformer import count, flags
from transformer.config import PRESETS, Config, resolve, result_settings
from transformer.errors import UserError

if TYPE_CHECKING:
  from rich.console import Console

  from launch import local
  from transformer.data import Data

FLAGS = absl_flags.FLAGS
_MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Experiment:
  """A question with its cells.

  name: of the script and of its folder under runs/. variable: the setting that varies, '' if none.
  baseline: the variant others are compared with. match: the kind of budget held equal, budget: its
  size. base: the resolved config of the baseline. cells: in the order variants are to be listed.
  """

  name: str
  question: str
  variable: str
  baseline: str
  match: str
  budget: int
  base: Config
  cells: Sequence[Cell]


def define_flags(name: str, **defaults: object) -> None:
  """The settings, and the flags that all experiments share."""
  flags.define(**defaults)
  flags.script_flag('str', 'workdir', f'runs/{name}', 'folder of cells, report and plots')
  flags.script_flag('bool', 'dry_run', False, 'print cells and cost, run nothing')
  flags.script_flag('bool', 'recompute', False, 'run cells again that other code or data made')
  flags.script_flag('bool', 'accept_stale', False, 'keep cells that other code or data made')


def define_comparison_flags(name: str, vary: str, baseline: str, match: str) -> None:
  """The flags of an experiment that compares values of one setting over paired seeds.

  It runs the pilot's shape unless asked otherwise: seconds a cell.
  """
  define_flags(name, **PRESETS['pilot'], **{'train.checkpoint_every': 200, 'train.log_every': 20})
  flags.script_flag('str', 'vary', vary, 'values to compare, separated by commas')
  flags.script_flag('str', 'baseline', baseline, 'the value that the others are compared with')
  flags.script_flag('str', 'seeds', '0..3', "paired seeds: '0..3' (both included) or '0,2,5'")
  flags.script_flag('str', 'match', match, 'budget held equal: params | flops | none')


def comparison(
  name: str, question: str, variable: str, config_of: Callable[[Config, str, int], Config]
) -> Experiment:
  """The experiment the comparison flags ask for.

  config_of(asked, value, budget): the resolved config of one value, from what the flags ask of the
  baseline; `budget` is what --match counts of it, 0 for none.
  """
  asked = flags.config()
  for taken, instead in ((variable, '--vary'), ('seed', '--seeds')):
    if FLAGS[taken].present:
      raise UserError(f'--{taken}: is varied by this experiment; use {instead}')
  if FLAGS.match not in ('params', 'flops', 'none'):
    raise UserError(f'--match={FLAGS.match}: choose from params, flops, none')
  values = list(dict.fromkeys(v.strip() for v in FLAGS.vary.split(',') if v.strip()))
  if FLAGS.baseline not in values:
    raise UserError(f'--baseline={FLAGS.baseline}: is not among --vary={",".join(values)}')
  kind = type(asked.get(variable))
  try:
    asked = asked.replace(**{variable: kind(FLAGS.baseline)})
  except ValueError:
    raise UserError(f'--baseline={FLAGS.baseline}: is not a {kind.__name__}') from None
  base = resolve(asked)
  budget = count.BUDGETS[FLAGS.match](base) if FLAGS.match != 'none' else 0
  seeds = parse_seeds(FLAGS.seeds)
  cells = []
  for value in values:
    config = config_of(asked, value, budget)
    cells += [Cell(f'{value}-seed{s}', value, config.replace(seed=s)) for s in seeds]
  return Experiment(name, question, variable, FLAGS.baseline, FLAGS.match, budget, base, cells)


def parse_seeds(text: str) -> list[int]:
  """'0..3' -> [0, 1, 2, 3]; '0,2..4' -> [0, 2, 3, 4]."""
  seeds: list[int] = []
  for part in text.split(','):
    first, dots, last = part.strip().partition('..')
    if not first.isdecimal() or (dots and not last.isdecimal()):
      raise UserError(f"--seeds={text}: expected numbers and ranges, as in '0..3' or '0,2,5'")
    if int(last or first) - int(first) >= _MOST_SEEDS:
      raise UserError(f'--seeds={text}: {part.strip()} is more than {_MOST_SEEDS:,} seeds')
    seeds += range(int(first), int(last or first) + 1)
  if not seeds or len(set(seeds)) < len(seeds):
    raise UserError(f'--seeds={text}: is empty or names a seed twice')
  return seeds


def run(experiment: Experiment) -> int:
  """Runs what is missing, writes and prints the report. Returns the exit status."""
  if not FLAGS.workdir:
    raise UserError('--workdir=: is empty; name a folder, as in --workdir=runs/x')
  out, workdir = console(), Path(FLAGS.workdir)
  is_new = not workdir.exists()
  if FLAGS.dry_run:
    _print_plan(experiment, workdir, out)
    return 0
  if experiment.base.train.tensorboard and not importlib.util.find_spec('tensorboard'):
    raise UserError("--train.tensorboard: needs the extra: pip install 'isoffn[tensorboard]'")
  _check_folder(experiment, workdir)
  _prepare(experiment, workdir)
  from launch import local

  outcome = local.run(workdir, experiment.cells, experiment.base.launch.workers)
  from transformer.analysis import report

  results = report.write(workdir)
  if reason := _refusal(outcome, workdir):
    if is_new:
      shutil.rmtree(workdir)
    raise UserError(reason)
  report.console(results, out)
  if outcome.interrupted:
    print('interrupted; the same command continues', file=sys.stderr)
    return 130
  return 1 if outcome.failed or outcome.elsewhere else 0


def console() -> Console:
  """Standard output. A file or a pipe has room for every column of a table."""
  from rich.console import Console

  narrow = sys.stdout.isatty() or 'COLUMNS' in os.environ
  return Console(width=None if narrow else 120)


def _refusal(outcome: local.Outcome, workdir: Path) -> str:
  """Why all cells of a launch were refused: a mistake that only showed where there are devices."""
  if outcome.done or outcome.interrupted:
    return ''
  failed = [read_json(c.folder(workdir) / 'failed.json', strict=False) for c in outcome.failed]
  refused = [f['message'] for f in failed if f and f['cause'] == 'refused']
  return refused[0] if refused and len(refused) == len(failed) else ''


def _prepare(experiment: Experiment, workdir: Path) -> None:
  """Data, the folder's own files and reference losses; refuses cells of other code or data."""
  from rich.console import Console

  from transformer import data

  with Console(stderr=True).status('preparing data'):
    try:
      opened = data.load(experiment.base)
    except UserError:
      with contextlib.suppress(OSError):
        workdir.rmdir()  # if we have just made it: it is empty
      raise
    old = stale(experiment.cells, workdir, opened.fingerprint)
    if old and FLAGS.recompute:
      for cell in old:
        _forget(cell.folder(workdir))
    elif old and not FLAGS.accept_stale:
      raise UserError(
        f'{workdir}: {len(old)} of {len(experiment.cells)} cells are done or begun, but by other '
        'code or from other data than now; --recompute runs them again, --accept_stale keeps them'
      )
    write_json(workdir / 'experiment.json', _record(experiment))
    write_json(workdir / 'resolved.json', experiment.base.to_json())
    _write_references(experiment, workdir, opened)


def _record(experiment: Experiment) -> dict:
  module = f'experiments.{Path(sys.argv[0]).stem}'
  once = ('--recompute', '--accept_stale', '--norecompute', '--noaccept_stale')
  args = [arg for arg in sys.argv[1:] if not arg.startswith(once)]
  return {
    'name': experiment.name,
    'question': experiment.question,
    'variable': experiment.variable,
    'baseline': experiment.baseline,
    'match': experiment.match,
    'budget': experiment.budget,
    'command': shlex.join(['python', '-m', module, *args]),
    'base': experiment.base.to_json(),
    'cells': [
      {
        'name': cell.name,
        'variant': cell.variant,
        'seed': cell.seed,
        'folder': cell.folder_name,
        'params': count.params(cell.config),
        'flops_per_token': count.flops_per_token(cell.config),
        'd_ff': cell.config.ffn.d_ff,
        'd_model': cell.config.model.d_model,
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
  if missing := {'name', 'match', 'variable', 'base'} - there.keys():
    raise UserError(f'{path}: lacks {min(missing)!r}; delete it, or choose another --workdir')
  mine = _identity(_record(experiment), experiment.base)
  theirs = _identity(there, Config.from_json(there['base'], str(path)))
  for key in [*mine, *sorted(theirs.keys() - mine.keys())]:
    if mine.get(key) != theirs.get(key):
      shown = [d.get(key, 'its default') for d in (theirs, mine)]
      raise UserError(
        f'--workdir={workdir}: holds runs of another configuration ({key} is {shown[0]} there, '
        f'{shown[1]} asked); choose another folder'
      )


def _identity(record: dict, base: Config) -> dict:
  """What must agree for two commands to share a folder, beside seeds and the values compared.

  d_ff is told by the ratio, or by the budget; --baseline decides no cell but through the budget.
  """
  variable = record['variable']
  without = ('seed', 'ffn.d_ff', variable) if variable else ()
  if record['match'] in count.BUDGETS:
    without += ('ffn.ratio',)
  told = {'experiment': 'name', '--match': 'match', f'budget of {record["match"]}': 'budget'}
  return {k: record.get(v) for k, v in told.items()} | result_settings(base, without)


def _write_references(experiment: Experiment, workdir: Path, opened: Data) -> None:
  """Unigram and bigram losses fitted on what seed 0 sees: one epoch or 4 M tokens at most."""
  import numpy as np

  from transformer.analysis import ngram

  base = experiment.base
  steps = base.train.steps
  key = f'{opened.fingerprint} {steps} {base.data.batch_size} {base.data.seq_len}'
  there = read_json(workdir / 'references.json', strict=False)
  if there and there.get('key') == key:
    return
  epoch = len(opened.rows) // base.data.batch_size
  enough = 4_000_000 // (base.data.batch_size * base.data.seq_len) + 1
  batches = max(1, min(steps, epoch, enough))
  seen = np.concatenate([opened.train_batch(i) for i in range(batches)])
  held_out = np.concatenate(list(opened.eval_batches()))
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
  for name in (*names, 'log.txt'):
    (folder / name).unlink(missing_ok=True)
  for name in ('checkpoints', 'tensorboard'):
    shutil.rmtree(folder / name, ignore_errors=True)


def _print_plan(experiment: Experiment, workdir: Path, out: Console) -> None:
  """Cells, parameters and FLOPs, without jax."""
  from rich import box
  from rich.table import Table

  from transformer.analysis.formats import short

  table = Table(title=experiment.question, title_justify='left', box=box.SIMPLE_HEAD)
  table.add_column('variant')
  for heading in ('seeds', 'd_model', 'd_ff', 'parameters', 'FLOPs/token'):
    table.add_column(heading, justify='right', no_wrap=True)
  table.add_column('state')
  for variant in dict.fromkeys(cell.variant for cell in experiment.cells):
    cells = [cell for cell in experiment.cells if cell.variant == variant]
    states = [state(cell.folder(workdir)) for cell in cells]
    config = cells[0].config
    numbers = (len(cells), config.model.d_model, config.ffn.d_ff, count.params(config))
    table.add_row(
      variant,
      *(f'{n:,}' for n in (*numbers, count.flops_per_token(config))),
      ', '.join(f'{states.count(s)} {s}' for s in dict.fromkeys(states)),
    )
  out.print(table)
  tokens = sum(count.train_tokens(cell.config) for cell in experiment.cells)
  flops = sum(count.train_flops(cell.config) for cell in experiment.cells)
  many = len(experiment.cells)
  out.print(
    f'{many} cell{"s" if many > 1 else ""}, {short(tokens)} training tokens, '
    f'{short(flops, "FLOP")}, in {workdir}; nothing was run'
  )
