"""The two sides of a comparison, seen from the one who lets them take turns."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Protocol, Self

from transformer.errors import UserError
from transformer.measure.measures import rate
from transformer.measure.timing import quartiles


class Side(Protocol):
  """Measures once more, each time it is asked."""

  def turn(self) -> dict: ...


class Ours:
  """A process of transformer.measure.worker.

  asked: what to measure, as JSON. keep: whether it stays between turns, prepared; else it gives
  an accelerator's memory back after each, and prepares again. As a context manager it leaves no
  process behind.
  """

  def __init__(self, asked: dict, env: dict[str, str], keep: bool = True):
    self._asked, self._env, self._keep = asked, env, keep
    self._process: subprocess.Popen | None = None
    self._first: dict = {}

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error: object) -> None:
    self._end(kill=any(error))

  def prepare(self) -> None:
    """Starts the process and waits until it is ready. Raises UserError if it never is."""
    if self._process:
      return
    command = [sys.executable, '-m', 'transformer.measure.worker']
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    self._process = subprocess.Popen(command, env=self._env, **pipes)
    self._ready = self._ask(self._asked)

  def turn(self) -> dict:
    """The facts of a turn; compile_s is always that of the first, which nothing had compiled."""
    self.prepare()
    facts = {'what': self._asked['what']} | self._ask({})
    if not self._keep:
      self._end()
    self._first = self._first or {k: facts[k] for k in ('compile_s', 'trace_s') if k in facts}
    return facts | self._first

  def answer(self) -> dict:
    """What it says without a turn, as the one that measures ceilings does; it ends then."""
    self.prepare()
    self._end()
    return self._ready

  def _ask(self, line: dict) -> dict:
    try:
      self._process.stdin.write(json.dumps(line) + '\n')
      self._process.stdin.flush()
    except BrokenPipeError:
      pass  # it says why, or its status does
    answer = self._process.stdout.readline()
    if not answer:
      status = self._process.wait()
      raise UserError(f'--what={self._asked["what"]}: its process ended with status {status}')
    told = json.loads(answer)
    if 'error' in told:
      raise UserError(told['error'])
    return told

  def _end(self, kill: bool = False) -> None:
    process, self._process = self._process, None
    if process:
      if kill:
        process.kill()
      process.stdin.close()
      process.wait()
      process.stdout.close()


class Foreign:
  """A program of somebody else's, started for each turn. Its last line of JSON counts.

  env: what it runs in, as ours but for what is jax's own.
  """

  def __init__(self, command: str, env: dict[str, str] | None = None):
    self._command, self._env = command, env

  def turn(self) -> dict:
    """That line, with tokens_per_s or step_ms in it. Raises UserError without one."""
    done = subprocess.run(self._command, shell=True, capture_output=True, text=True, env=self._env)
    for line in reversed(done.stdout.splitlines()):
      try:
        told = json.loads(line)
        if rate(told) > 0:
          return told
      except (ValueError, TypeError, KeyError, ZeroDivisionError):
        continue
    said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ['nothing']
    raise UserError(
      f'--against_command={self._command}: status {done.returncode}, and no line of JSON with a '
      f'tokens_per_s or step_ms above 0; it said: {said[0][:200]}'
    )


def in_turns(ours: Side, theirs: Side | None, rounds: int) -> dict:
  """What `ours` measures in a turn; with `theirs`, in the round whose ratio is the median.

  ratio: ours over theirs in that round, of what `measures.rate` reads of both; of an even number
  of rounds the lower of the middle two. Who begins changes from round to round.
  """
  if theirs is None:
    return ours.turn()
  pairs = []
  for i in range(rounds):
    turns = [side.turn() for side in ((ours, theirs) if i % 2 == 0 else (theirs, ours))]
    pairs.append(turns if i % 2 == 0 else turns[::-1])
  ratios = [_ratio(*pair) for pair in pairs]
  middle = sorted(range(rounds), key=ratios.__getitem__)[(rounds - 1) // 2]
  mine, other = pairs[middle]
  return mine | {
    'ratio': ratios[middle],
    'ratio_by_round': [round(r, 3) for r in ratios],
    'ratio_quartiles': quartiles(ratios),
    'against': other,
  }


def _ratio(mine: dict, other: dict) -> float:
  """By tokens if both tell them, else by the time of a step."""
  if 'tokens_per_s' in mine and 'tokens_per_s' not in other and 'step_ms' in other:
    mine = {'step_ms': mine['step_ms']}
  return rate(mine) / rate(other)
