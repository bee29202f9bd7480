"""Many runs of one shape as one program, for accelerators that a small run leaves mostly idle.

Each run lives as alone (train.life), with its own folder, data order, metrics and checkpoints. What
it wants computed waits until the others want the same; then one vmapped program does it for all,
on states that lie stacked. Results are those of runs alone, to rounding.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer import step, train
from transformer.config import Config
from transformer.errors import UserError
from transformer.state import TrainState

Tree = Any


def run(runs: Sequence[tuple[Config, Path, train.Control]]) -> list[dict | Exception]:
  """Trains runs of one static key together. What each comes to: done.json's, or what it raised.

  Runs may stand at different steps, and end one by one.
  """
  shared = functools.cache(lambda: Population(runs[0][0], len(runs)))
  ended: dict[int, dict | Exception] = {}
  waiting: dict[int, tuple[Callable, TrainState | Slot, dict]] = {}

  def goes_on(i: int, found: Tree) -> None:
    try:
      waiting[i] = lives[i].send(found)
    except StopIteration as end:
      ended[i] = end.value
    except Exception as e:
      ended[i] = e

  with contextlib.ExitStack() as stack:
    lives = [
      stack.enter_context(contextlib.closing(train.life(*given, lambda _, i=i: shared().member(i))))
      for i, given in enumerate(runs)
    ]
    for i in range(len(runs)):
      goes_on(i, None)
    while waiting:
      ((compute, _),) = Counter(compute for compute, *_ in waiting.values()).most_common(1)
      asked = {i: given for i, (wanted, *given) in waiting.items() if wanted == compute}
      try:
        found = compute(asked)
      except Exception as e:  # of the device, as when memory runs out
        return [ended.get(i, e) for i in range(len(runs))]
      for i in asked:
        del waiting[i]
        goes_on(i, found[i])
  return [ended[i] for i in range(len(runs))]


class Slot:
  """The state of one run, as it lies among the others."""

  def __init__(self, state: Callable[[], TrainState]):
    self.state = state

  @property
  def eval_params(self) -> dict:
    """As of a state by itself."""
    return self.state().eval_params


class _Part:
  """One run's part of an array, fetched with the others' when it is read."""

  def __init__(self, whole: jax.Array, i: int):
    self._whole, self._i = whole, i
    self.copy_to_host_async, self.is_ready = whole.copy_to_host_async, whole.is_ready

  def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
    return np.asarray(self._whole)[self._i]  # jax keeps the whole once it is fetched


class Population:
  """The steps of `size` runs as one program, and their states.

  Raises UserError where there is more than one device: then each should have runs of its own.
  """

  def __init__(self, config: Config, size: int):
    self.program, self.size = train.program(config), size
    executor = self.program.executor
    if len(executor.devices) > 1:
      raise UserError(
        f'--launch.together={config.launch.together}: is for one device a process; '
        f'{len(executor.devices)} present; --parallel.mesh=data:1 takes one'
      )
    self._states: TrainState | None = None
    self.train_step = executor.compile(functools.partial(_train_steps, config))
    self._eval_step = executor.compile_eval(functools.partial(_eval_steps, config))
    self._take = jax.jit(lambda states, i: jax.tree.map(lambda x: x[i], states))
    self._put = jax.jit(
      lambda states, i, own: jax.tree.map(lambda x, y: x.at[i].set(y), states, own),
      donate_argnums=0,
    )

  def member(self, i: int) -> Member:
    """What run i sees of it."""
    return Member(self, i)

  def train(self, asked: dict[int, tuple[TrainState | Slot, dict]]) -> dict[int, tuple]:
    """A training step of the runs that ask for one: (its slot, its metrics) of each."""
    states = self.seated(asked)
    self._states, metrics = self.train_step(states, self.batches(asked))
    return {i: (Slot(functools.partial(self.state, i)), _parts(metrics, i)) for i in asked}

  def evaluate(self, asked: dict[int, tuple[TrainState | Slot, dict]]) -> dict[int, Tree]:
    """An evaluation step of the runs that ask for one."""
    sums = self._eval_step(self.seated(asked), self.batches(asked))
    return {i: _parts(sums, i) for i in asked}

  def state(self, i: int) -> TrainState:
    """A copy of run i's."""
    return self._take(self._states, i)

  def batches(self, asked: dict[int, tuple[Any, dict]]) -> dict[str, np.ndarray]:
    """Stacked; runs that ask for nothing stand still, whatever they are given."""
    some = next(iter(asked.values()))[1]
    batches = [asked[i][1] if i in asked else some for i in range(self.size)]
    return {
      'tokens': np.stack([batch['tokens'] for batch in batches]),
      'rows': some['rows'],
      'asked': np.array([i in asked for i in range(self.size)]),
    }

  def seated(self, asked: dict[int, tuple[TrainState | Slot, dict]]) -> TrainState:
    """All states stacked, those among them that a run brings for the first time."""
    for i, (own, _) in asked.items():
      if isinstance(own, Slot):
        continue
      if self._states is None:
        self._states = jax.tree.map(lambda x: jnp.repeat(x[None], self.size, 0), own)
      self._states = self._put(self._states, i, own)
    return self._states


class Member:
  """A population as one of its runs sees it: a `train.Program` whose steps wait for the others'."""

  def __init__(self, population: Population, i: int):
    self._program, self._i = population.program, i
    self.executor = self  # states come and go by `fetch`, `place`
    self.init, self.batch = self._program.init, self._program.batch
    self.part, self.place = self._program.executor.part, self._program.executor.place
    self.train_step, self.evaluate = population.train, population.evaluate
    self.ffn_statistics, self.choices = self._program.ffn_statistics, self._program.choices

  def put(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Still on the host: it goes to the device with the others'."""
    return self._program.batch(tokens)

  put_part = put  # of one process

  def fetch(self, state: TrainState | Slot) -> TrainState:
    """The state as it is saved."""
    return self._program.executor.fetch(state.state() if isinstance(state, Slot) else state)

  def training_statistics(self, state: TrainState | Slot, batch: dict) -> Tree:
    """As of a program."""
    return self._program.training_statistics(self.fetch(state), batch)


def _train_steps(
  config: Config, states: TrainState, batches: dict, reduce: step.Reduce
) -> tuple[TrainState, step.Metrics]:
  def one(state: TrainState, tokens: jax.Array, asked: jax.Array) -> tuple:
    batch = {'tokens': tokens, 'rows': batches['rows']}
    new, metrics = step.train_step(config, state, batch, reduce)
    return jax.tree.map(lambda new, old: jnp.where(asked, new, old), new, state), metrics

  return jax.vmap(one)(states, batches['tokens'], batches['asked'])


def _eval_steps(config: Config, states: TrainState, batches: dict, reduce: step.Reduce) -> Tree:
  def one(state: TrainState, tokens: jax.Array) -> Tree:
    batch = {'tokens': tokens, 'rows': batches['rows']}
    return step.eval_step(config, state.eval_params, batch, reduce)

  return jax.vmap(one)(states, batches['tokens'])


def _parts(tree: Tree, i: int) -> Tree:
  return jax.tree.map(lambda x: _Part(x, i), tree)
