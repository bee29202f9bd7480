"""How fast are training and decoding here, and how near to what the machine can do?

  python -m experiments.benchmark --preset=bench
  python -m experiments.benchmark --preset=bench --what=train,evaluate,memory --json
  python -m experiments.benchmark --preset=bench --what=decode --data.seq_len=512
  python -m experiments.benchmark --preset=bench --ffn.activation=swiglu --ffn.d_ff=512 \
    --moe.experts=8 --against='--moe.experts=0 --moe.dispatch=auto --ffn.d_ff=1024'
  python -m experiments.benchmark --preset=bench --against_command='python their_benchmark.py'
  python -m experiments.benchmark --preset=pilot --profile=trace
  python -m experiments.benchmark --suite=cpu --seconds=5 --write=docs/results/performance.md

Each --what runs in a process of its own, in the environment that a launch gives its workers, on
synthetic data, and needs jax, flax, optax and absl-py alone (data and loop apart):

  train     the training step           loop    the same within a whole run: the host's share
  evaluate  the evaluation step         data    text to batches, from an empty cache
  decode    continuing prompts          start   process start to first step, cold and warm
  memory    the step's, as compiled

The machine's ceilings are measured first: matrix products by type and shape, memory bandwidth.
--suite measures what docs/results tells of a kind of machine (gpu: within 8 minutes at --seconds=5
--rounds=1; cpu: half an hour), and --write has its page, complete after each row.

mfu is the share of the fastest product in the run's type that the model's own FLOPs reach (no
credit for recomputation). step_ms is the median of chunks of steps; quartiles stand beside it.

--against names flags to measure the same with, and --against_command a program that measures the
same elsewhere and prints JSON objects with tokens_per_s or step_ms, a line each, the last of which
counts: it and ours take turns --rounds times in one sitting and one environment (as for malloc),
and ratio is the median of ours over theirs, round by round.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from launch import machine
from transformer import flags, hardware
from transformer.config import SETTINGS, Config, resolve
from transformer.errors import UserError
from transformer.measure import shares, sides, table
from transformer.measure.measures import WHATS, Asked

flags.define(**{'data.source': 'synthetic', 'model.unroll': True})
JSON = flags.script_flag('bool', 'json', False, 'print one JSON object a line')
SECONDS = flags.script_flag('float', 'seconds', 10.0, 'time to measure for, after warm-up')
WHAT = flags.script_flag('str', 'what', 'train', f'of {", ".join(WHATS)}; several by commas')
PROMPT = flags.script_flag('int', 'prompt_tokens', 32, 'decode: tokens a prompt')
NEW = flags.script_flag('int', 'new_tokens', 256, 'decode: tokens it is continued by')
BEAMS = flags.script_flag('int', 'beams', 0, 'decode: width of a beam search; 0: greedy')
CORPUS = flags.script_flag('float', 'corpus_mb', 20.0, 'data: megabytes of generated text')
AGAINST = flags.script_flag('str', 'against', '', 'other flags to take turns with')
COMMAND = flags.script_flag('str', 'against_command', '', 'a program to take turns with')
ROUNDS = flags.script_flag('int', 'rounds', 3, 'turns with --against or --against_command')
ONE_CORE = flags.script_flag(
  'bool', 'one_core', False, 'on one core and thread, as one of several workers on CPU'
)
PROFILE = flags.script_flag('str', 'profile', '', 'folder for a trace of a few steps')
SUITE = flags.script_flag(
  'str', 'suite', '', 'all that is measured on a kind of machine: cpu | gpu'
)
WRITE = flags.script_flag('str', 'write', '', '--suite: a page of Markdown')
_CEILING_SECONDS = 0.3  # for each product
_TRACED = ('train', 'evaluate', 'loop', 'decode')
_OF_PEAK = ('train', 'evaluate', 'loop')  # whose FLOPs are known
_TEXT = ('data', 'start')  # what may run on text


def main() -> int:
  if SUITE.value:
    return run_suite()
  asked, whats = flags.config(), [what.strip() for what in WHAT.value.split(',')]
  _check(asked, whats)
  ours = resolve(asked)
  theirs = resolve(flags.varied(AGAINST.value, 'against')) if AGAINST.value else None
  ceilings = {}
  if any(what in _OF_PEAK for what in whats):
    with _cores(ONE_CORE.value):
      ceilings = measured_ceilings([c for c in (ours, theirs) if c], ONE_CORE.value)
    if not JSON.value:
      table.show_ceilings(ceilings)
  for what in whats:
    other = theirs and _asked(what, theirs)
    with _cores(ONE_CORE.value):
      facts = measured(_asked(what, ours), other, ceilings, COMMAND.value, ONE_CORE.value)
    facts |= {'against_flags': AGAINST.value} if theirs else {}
    facts |= {'against_command': COMMAND.value} if COMMAND.value else {}
    if JSON.value:
      print(json.dumps(facts), flush=True)
    else:
      table.show(facts)
  return 0


def _check(asked: Config, whats: Sequence[str]) -> None:
  """Raises UserError for flags that do not go together."""
  for what in whats:
    if what not in WHATS:
      raise UserError(f'--what={what}: choose from {", ".join(WHATS)}')
    synthetic = asked.data.source.partition('(')[0] == 'synthetic'
    if not synthetic and what not in _TEXT:
      raise UserError(f'--data.source={asked.data.source}: benchmarks run on synthetic data')
    if PROFILE.value and what not in _TRACED:
      raise UserError(f'--profile={PROFILE.value}: --what={what} has no steps to trace')
  if AGAINST.value and COMMAND.value:
    raise UserError('--against: --against_command is given as well; leave one of them out')
  for flag, least in ((PROMPT, 1), (NEW, 1), (BEAMS, 0), (ROUNDS, 1)):
    if flag.value < least:
      raise UserError(f'--{flag.name}={flag.value}: below the least allowed, {least}')


def _asked(what: str, config: Config) -> Asked:
  return Asked(
    what,
    config,
    seconds=SECONDS.value,
    prompt_tokens=PROMPT.value,
    new_tokens=NEW.value,
    beams=BEAMS.value,
    corpus_mb=CORPUS.value,
    profile=PROFILE.value and str(Path(PROFILE.value).absolute()),
  )


def run_suite() -> int:
  """Measures all rows of --suite and writes their page, or prints them."""
  from experiments import suites

  if SUITE.value not in suites.SUITES:
    raise UserError(f'--suite={SUITE.value}: choose from {", ".join(suites.SUITES)}')
  others = [WHAT, PROMPT, NEW, BEAMS, CORPUS, AGAINST, COMMAND, ONE_CORE, PROFILE]
  others += [flags.FLAGS[name] for name in ('preset', *SETTINGS)]
  if clash := next((flag.name for flag in others if flag.present), ''):
    raise UserError(f'--{clash}: --suite has rows of its own; leave one of them out')
  configs = [c for row in suites.SUITES[SUITE.value][:1] for c in row.configs() if c]
  by_cores = {False: measured_ceilings(configs)}

  def measure(row: suites.Row) -> dict:
    ours, theirs = row.configs()
    facts = {name: ours.get(name) for name in SETTINGS} | {'seconds': SECONDS.value}
    command = re.sub(r'{([\w.]+)}', lambda m: str(facts[m[1]]), row.command)
    with _cores(row.one_core):
      if row.one_core not in by_cores:
        by_cores[row.one_core] = measured_ceilings(configs, row.one_core)
      asked, other = _asked(row.what, ours), theirs and _asked(row.what, theirs)
      told = measured(asked, other, by_cores[row.one_core], command, row.one_core)
    told |= {'against_command': command} if command else {}
    if row.against:
      told['against_flags'] = ' '.join(f'--{k}={v}' for k, v in row.against.items())
    return told

  path = Path(WRITE.value) if WRITE.value else None
  command = f'python -m experiments.benchmark {shlex.join(sys.argv[1:])}'
  found = suites.run(SUITE.value, measure, by_cores[False], path, command)
  if JSON.value:
    print('\n'.join(map(json.dumps, found)))
  elif not path:
    print(suites.page(SUITE.value, found, by_cores[False], command))
  return 1 if any('failed' in facts for facts in found) else 0


@contextlib.contextmanager
def _cores(one: bool) -> Iterator[None]:
  """Has what is started within run on one core, if asked."""
  if not one or not hasattr(os, 'sched_setaffinity'):
    yield
    return
  before = os.sched_getaffinity(0)
  os.sched_setaffinity(0, machine.schedulable_cores()[:1])
  try:
    yield
  finally:
    os.sched_setaffinity(0, before)


def measured_ceilings(configs: Sequence[Config], one_core: bool = False) -> dict:
  """What the machine can do, at large products and at those of these configs."""
  told = {'what': 'ceilings', 'shapes': shares.shapes(configs)}
  told['seconds'] = min(SECONDS.value, _CEILING_SECONDS)
  with sides.Ours(told, _apart(machine.Seat(one_thread=one_core))) as side:
    return side.answer()


def measured(
  ours: Asked, theirs: Asked | None, ceilings: dict, command: str, one_core: bool
) -> dict:
  """The facts of one measurement, in turns with another side where there is one."""
  with contextlib.ExitStack() as stack:
    env = machine.Seat(one_thread=one_core).environment()
    foreign = sides.Foreign(command, env) if command else None
    other = foreign or (theirs and _side(stack, theirs, one_core))
    facts = sides.in_turns(_side(stack, ours, one_core), other, ROUNDS.value)
  facts |= shares.described(ours.config) | shares.of_peak(facts, ceilings, ours.config)
  if theirs:
    own = facts['against']
    own |= shares.described(theirs.config) | shares.of_peak(own, ceilings, theirs.config)
  return facts | ({'ceilings': ceilings} if 'mfu' in facts else {})


def _side(stack: contextlib.ExitStack, asked: Asked, one_core: bool) -> sides.Ours:
  """A process where a launch would put it: with one core, or the machine, to itself."""
  if one_core:
    seat = machine.Seat(one_thread=True)
  else:
    [seat] = machine.seats(1, 1, rows=machine.rows_of([asked.config]))
  # Two processes do not share an accelerator: there each takes its turn and leaves.
  keep = hardware.kind() is None
  return stack.enter_context(sides.Ours(asked.to_json(), _apart(seat), keep))


def _apart(seat: machine.Seat) -> dict[str, str]:
  """The seat's environment, but for compiled programs that runs have kept: they are timed."""
  return seat.environment() | {'JAX_ENABLE_COMPILATION_CACHE': '0'}


if __name__ == '__main__':
  flags.run(main)
