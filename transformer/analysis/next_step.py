"""The next better experiment: the exact command, and what it costs by what this one measured."""

from __future__ import annotations

import math
import shlex
import statistics
from dataclasses import dataclass

from transformer.analysis import formats, learned, stats
from transformer.analysis.results import Cell, Results

AIM = 8  # paired seeds: what differences of half a percent take
MOST = 16  # more seeds than this are asked only where nothing less helps
LONGER = 4  # times the tokens
_AT_ONCE = 'no good step before'  # as the trainer says where not even the first step was finite


@dataclass(frozen=True)
class Step:
  """One suggestion."""

  why: str
  command: str
  cost: str


def suggest(results: Results) -> list[Step]:
  """Finishing what is open first, then more seeds where they help, then a larger budget."""
  if not results.command:
    return []
  broken = [c for c in results.cells if c.failure.get('cause') == 'non-finite']
  overflowed = [c for c in broken if _AT_ONCE in str(c.failure.get('message'))]
  left = [c for c in results.cells if c.state not in ('done', 'pruned') and c not in broken]
  lost = learned.risen(results)
  steps = [*_replay(overflowed), *_lower_rate(results, len(broken) > len(overflowed), bool(lost))]
  if left:
    count = f'{len(left)} cell{"s" if len(left) > 1 else ""}'
    why = f'Finish the {count} still open or failed; what is done is not computed again.'
    steps.append(Step(why, results.command, _cost(results, [(c, 1, 1) for c in left])))
  if results.searched:  # a search is no comparison: it knows what to look at next
    return steps
  if len(results.variants) > 1 and results.done:
    steps += _more_seeds(results)
  learning = [v for v in results.variants if v.loss.n and v not in lost]
  if len(learning) >= min(2, len(results.variants)):  # of one alone there is no order to hold
    steps += _longer(results)
  return steps


def _replay(overflowed: list[Cell]) -> list[Step]:
  """For a cell that had no good step: the rate had no part in that."""
  if not overflowed:
    return []
  many = len(overflowed)
  who = f'`{overflowed[0].name}`' + (f' and {many - 1} more' if many > 1 else '')
  why = (
    f'{who} failed at the very first step: the model itself overflows at the weights it begins '
    'with, whatever the rate. See which tensor does.'
  )
  command = shlex.join(['python', '-m', 'experiments.replay', f'--cell={overflowed[0].folder}'])
  return [Step(why, command, '1 step of 1 cell')]


def _lower_rate(results: Results, diverged: bool, lost: bool) -> list[Step]:
  """Half the rate, for all variants: at the same one the diverged cells would diverge again."""
  rates = results.settings('optim.learning_rate')
  if not rates or not (diverged or lost) or 'optim.learning_rate' in results.by:
    return []
  flags = {
    'optim.learning_rate': f'{rates[-1] / 2:.3g}',
    'workdir': f'{results.workdirs[0]}-half-rate',
  }
  cost = _cost(results, [(c, 1, 1) for c in results.cells])
  why = 'Cells diverged, and would again at this learning rate: halve it, for all variants.'
  if not diverged:
    why = (
      'A loss ended above what counting tokens gives: halve the learning rate, for all variants.'
    )
  if len(results.variants) == 1:
    why = why.replace(', for all variants', '')
  return [Step(why, with_flags(results.command, flags), cost)]


def _more_seeds(results: Results) -> list[Step]:
  asked = max(len(v.seeds) for v in results.variants)
  wanted = _wanted_seeds(results, asked)
  if wanted is None:
    return []
  first = min(c.seed for c in results.cells)
  seeds = f'{first}..{first + wanted - 1}'
  many = [len(v.cells) // len(v.seeds) for v in results.variants]  # cells of a seed
  new = [
    (v.cells[0], 1, n * (wanted - len(v.seeds)))
    for v, n in zip(results.variants, many, strict=True)
  ]
  aim = 'to part what is tied' if _ties(results) else 'for a verdict'
  why = f'{wanted} paired seeds in place of {asked}, {aim}; done cells are kept.'
  return [Step(why, _with_seeds(results.command, seeds), _cost(results, new))]


def _with_seeds(command: str, seeds: str) -> str:
  """The command with other seeds: in the grid of a sweep, else by --seeds."""
  words = shlex.split(command)
  at = next((i for i, word in enumerate(words) if word.lstrip('-').startswith('grid=')), None)
  if at is None:
    return with_flags(command, {'seeds': seeds})
  name, _, grid = words[at].partition('=')
  axes = [axis.strip() for axis in grid.split(';') if axis.strip()]
  kept = [axis for axis in axes if axis.partition('=')[0].strip() != 'seed']
  words[at] = f'{name}={"; ".join([*kept, f"seed={seeds}"])}'
  return shlex.join(words)


def _wanted_seeds(results: Results, asked: int) -> int | None:
  """Seeds that would settle the ties within MOST, or the easiest one; None if none can be."""
  found = [v.difference for v in results.variants if v.difference]
  settles = [d.settle for d in found if d.verdict == 'tie' and d.settle and math.isfinite(d.settle)]
  if asked < stats.MIN_SEEDS + 2 and (_ties(results) or _too_few(results)):
    settles.append(AIM)
  settles = [math.ceil(s) for s in settles if s > asked]
  if not settles:
    return None
  within = [s for s in settles if s <= MOST]
  return max(within) if within else min(settles)


def _ties(results: Results) -> bool:
  tied = any(v.difference and v.difference.verdict == 'tie' for v in results.variants)
  return tied or len(results.leaders) > 1


def _too_few(results: Results) -> bool:
  """Whether there is something to compare for which the seeds asked for are too few."""
  asked = [v for v in results.variants if v.loss.n and not (v.difference and v.difference.obstacle)]
  return len(asked) > 1 and any(len(v.seeds) < stats.MIN_SEEDS for v in asked)


def _longer(results: Results) -> list[Step]:
  steps = results.setting('train.steps')
  if not steps or 'train.steps' in results.by or learned.origin(results):
    return []
  folder = f'{results.workdirs[0]}-{LONGER}x'
  flags = {'train.steps': str(LONGER * steps), 'workdir': folder}
  amount, unit = results.amount(results.cells[0]), results.unit
  of = f' ({formats.short(LONGER * amount)} each)' if amount else ''
  why = f'{LONGER} times the {unit}{of}, to see whether the order holds as the budget grows.'
  if len(results.variants) == 1:
    why = f'{LONGER} times the {unit}{of}.'
  cells = [(v.cells[0], LONGER, len(v.cells)) for v in results.variants]
  return [Step(why, with_flags(results.command, flags), _cost(results, cells))]


def with_flags(command: str, flags: dict[str, str]) -> str:
  """The command with flags set: replaced where given as --name=value or --name value, else added.

  `flags` maps names without dashes to values.
  """
  words, out, left = shlex.split(command), [], dict(flags)
  while words:
    word = words.pop(0)
    name, equals, _ = word.lstrip('-').partition('=')
    if word.startswith('-') and name in flags:
      if not equals and words:
        words.pop(0)
      if name in left:
        out.append(f'--{name}={left.pop(name)}')
    else:
      out.append(word)
  return shlex.join(out + [f'--{name}={value}' for name, value in left.items()])


def _cost(results: Results, cells: list[tuple[Cell, float, int]]) -> str:
  """'24 cells, about 2 min with 2 workers, 0.15 PFLOP' of (cell like these, times, how many)."""
  count = sum(many for *_, many in cells)
  parts = [f'{count} cell{"s" if count != 1 else ""}']
  seconds = [_seconds(results, cell) for cell, *_ in cells]
  if all(s is not None for s in seconds):
    total = sum(s * times * many for s, (_, times, many) in zip(seconds, cells, strict=True))
    workers = min(_workers(results), max(count, 1))
    with_ = f'{workers} worker{"s" if workers > 1 else ""}'
    parts.append(f'about {formats.duration(total / workers)} with {with_} at the speed seen here')
  flops = [(c.asked.get('flops_per_token') or 0) * (results.tokens(c) or 0) for c, *_ in cells]
  if all(flops):
    total = sum(f * times * many for f, (_, times, many) in zip(flops, cells, strict=True))
    parts.append(formats.short(total, 'FLOP'))
  return ', '.join(parts)


def _seconds(results: Results, cell: Cell) -> float | None:
  """Median seconds of the finished cells of the same variant, else of any."""
  timed = [c for c in results.done if c.result.get('seconds')]
  same = [c.result['seconds'] for c in timed if c.variant == cell.variant]
  found = same or [c.result['seconds'] for c in timed]
  return statistics.median(found) if found else None


def _workers(results: Results) -> int:
  """--launch.workers, else one a core on CPU and one on an accelerator."""
  asked = results.setting('launch.workers')
  if asked:
    return asked
  places = [c.provenance for c in results.done if c.provenance.get('cores')]
  on_cpu = [p for p in places if 'cpu' in str(p.get('device', 'cpu')).lower()]
  return int(on_cpu[-1]['cores']) if on_cpu else 1
