"""How fast are training and decoding here, and how near to what the machine can do?

  python -m experiments.benchmark --preset=bench
  python -m experiments.benchmark --preset=bench --what=train,evaluate,memory --json
  python -m experiments.benchmark --preset=bench --what=decode --data.seq_len=512
  python -m experiments.benchmark --preset=bench --ffn.activation=swiglu --ffn.d_ff=512 \
    --moe.experts=8 --against='--moe.experts=0 --moe.dispatch=auto --ffn.d_ff=1024'
  python -m experiments.benchmark --preset=bench --against_command='python their_benchmark.py'
  python -m experiments.benchmark --preset=pilot --profile=trace
  python -m experiments.benchmark --suite=cpu --write=docs/results/performance.md

Each --what runs in a process of its own, in the environment that a launch gives its workers, on
synthetic data, and needs jax, flax, optax and absl-py alone (data and loop apart):

  train     the training step           loop    the same within a whole run: the host's share
  evaluate  the evaluation step         data    text to batches, from an empty cache
  decode    continuing prompts          start   process start to first step, cold and warm
  memory    the step's, as compiled

The machine's ceilings are measured first: matrix products by type and shape, memory bandwidth.
mfu is the share of the fastest product in the run's type that the model's own FLOPs reach (no
credit for recomputation). step_ms is the median of chunks of steps; quartiles stand beside it.

--against names flags to measure the same with, and --against_command a program that measures the
same elsewhere and prints JSON objects with tokens_per_s or step_ms, a line each, the last of which
counts: it and ours take turns --rounds times in one sitting, and ratio is the median of ours over
theirs, round by round.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from launch import machine
from transformer import flags, hardware
from transformer.config import Config, resolve
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
_CEILING_SECONDS = 0.3  # for each product
_TRACED = ('train', 'evaluate', 'loop', 'decode')
_OF_PEAK = ('train', 'evaluate', 'loop')  # whose FLOPs are known
_TEXT = ('data', 'start')  # what may run on text


def main() -> int:
  asked, whats = flags.config(), [what.strip() for what in WHAT.value.split(',')]
  _check(asked, whats)
  ours = resolve(asked)
  theirs = resolve(flags.varied(AGAINST.value, 'against')) if AGAINST.value else None
  if ONE_CORE.value and hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, machine.schedulable_cores()[:1])  # of all that is started here
  ceilings = {}
  if any(what in _OF_PEAK for what in whats):
    ceilings = measured_ceilings([c for c in (ours, theirs) if c])
    if not JSON.value:
      table.show_ceilings(ceilings)
  for what in whats:
    other = theirs and _asked(what, theirs)
    facts = measured(_asked(what, ours), other, ceilings, COMMAND.value)
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


def measured_ceilings(configs: Sequence[Config]) -> dict:
  """What the machine can do, at large products and at those of these configs."""
  told = {'what': 'ceilings', 'shapes': shares.shapes(configs)}
  told['seconds'] = min(SECONDS.value, _CEILING_SECONDS)
  with sides.Ours(told, _apart(machine.Seat(one_thread=ONE_CORE.value))) as side:
    return side.answer()


def measured(ours: Asked, theirs: Asked | None, ceilings: dict, command: str = '') -> dict:
  """The facts of one measurement, in turns with another side where there is one."""
  with contextlib.ExitStack() as stack:
    other = sides.Foreign(command) if command else theirs and _side(stack, theirs)
    facts = sides.in_turns(_side(stack, ours), other, ROUNDS.value)
  facts |= shares.described(ours.config) | shares.of_peak(facts, ceilings, ours.config)
  if theirs:
    own = facts['against']
    own |= shares.described(theirs.config) | shares.of_peak(own, ceilings, theirs.config)
  return facts | ({'ceilings': ceilings} if 'mfu' in facts else {})


def _side(stack: contextlib.ExitStack, asked: Asked) -> sides.Ours:
  """A process where a launch would put it: with one core, or the machine, to itself."""
  if ONE_CORE.value:
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
