"""One run, from a resolved config and a folder to a result; resumable at any point.

`Program` is what compiling gives and cells of equal static key share; `life` is one cell's: it asks
for steps, and whoever leads it computes them, `run` for one cell, population.py for many at once.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from transformer import (
  attention,
  bad,
  boards,
  count,
  data,
  diagnose,
  health,
  hosts,
  liking,
  moe,
  parallel,
  programs,
  provenance,
  runs,
  state,
  step,
  translate,
)
from transformer.begin import begin, check_tokenizer
from transformer.checkpoint import Checkpoints
from transformer.config import Config, resolve, static_key
from transformer.data import Data
from transformer.errors import UserError
from transformer.metrics import FILE, MetricsLog, means, read, spread
from transformer.ops import cudnn, grouped, probe
from transformer.state import TrainState

TOKENIZER = 'tokenizer.json'
_AHEAD = 16  # evaluation batches on the device at a time
_LOOKED_AT = 1024  # held-out tokens that rows ffn/… are made of


class Stopped(Exception):
  """The run was asked to stop; it has saved itself and can be continued."""


class NonFinite(Exception):
  """Too many steps in a row with a loss, gradient or update that is not finite."""

  cause = 'non-finite'


class Control:
  """How a run is watched and stopped from outside; this one does nothing."""

  stop = False

  def check(self) -> None:
    """Raises if the run's claim on its folder is lost."""

  def beat(self, **progress: object) -> None:
    """Takes note of progress: step, steps, loss, tokens_per_s, spikes, phase."""


class Program:
  """The compiled steps of every config with one static key, on one layout of devices."""

  def __init__(self, config: Config):
    self.executor = parallel.make(config)
    probe.settle(config.model.dtype)
    kernels = [cudnn.settle(shape) for shape in attention.shapes(config)]
    kernels += [grouped.settle(s) for s in sorted(moe.grouped_shapes(config, self.executor.shares))]
    hosts.check_same('kernels', ' '.join(kernels))
    self._create = self.executor.compile_init(functools.partial(state.create, config))
    self.train_step = self.executor.compile(functools.partial(step.train_step, config))
    self.eval_step = self.executor.compile_eval(functools.partial(step.eval_step, config))
    self._rows = np.arange(config.data.batch_size, dtype=np.int32)
    whole = self.executor.compile_whole
    self.ffn_statistics = whole(functools.partial(diagnose.ffn_statistics, config))
    self.choices = whole(functools.partial(liking.choices, config))
    self.training_statistics = whole(functools.partial(diagnose.training_statistics, config))

  def evaluate(self, current: TrainState, batch: dict) -> step.Sums:
    """The evaluation step of a state."""
    return self.eval_step(current.eval_params, batch)

  def init(self, config: Config) -> TrainState:
    """The state of `config` before step 0."""
    return self._create(np.uint32(config.seed), state.hyper_arrays(config))

  def lowered(self, config: Config) -> jax.stages.Lowered:
    """The training step before it is compiled; no array of the state is made."""
    create = functools.partial(state.create, config)
    shapes = self.executor.shapes(create, np.uint32(config.seed), state.hyper_arrays(config))
    source = config.data.source_len if config.model.architecture == 'encoder_decoder' else 0
    width = source + config.data.seq_len + 1
    tokens = np.zeros((config.data.batch_size, width), np.int32)
    return self.train_step.lower(shapes, self.put(tokens))

  def put(self, tokens: np.ndarray) -> dict:
    """A host batch (B, T+1) on the devices."""
    return self.executor.put(self.batch(tokens))

  def put_part(self, tokens: np.ndarray) -> dict:
    """A batch on the devices of which this process has its part (executor.part), as others do."""
    part, parts = self.executor.part
    rows = self._rows.reshape(parts, -1)[part]
    return self.executor.put_part({'tokens': tokens, 'rows': rows})

  def batch(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """The same on the host."""
    return {'tokens': tokens, 'rows': self._rows}


Life = Generator[tuple[Callable, TrainState, dict], Any, dict]  # ends with done.json's, or a row
_programs: dict[str, Program] = {}


def program(config: Config) -> Program:
  """The program of a resolved config. The last one is kept: cells of equal shape come in a row."""
  programs.keep(config.data.cache)
  m = config.model
  key = f'{config.parallel} {m.unroll} {m.remat} {static_key(config)}'
  if key not in _programs:
    _programs.clear()
    _programs[key] = Program(config)
  return _programs[key]


def with_counts(config: Config, program: Program, data: Data, fresh: TrainState) -> TrainState:
  """A fresh state with what routers know of the training data."""
  if not health.wants_counts(config):
    return fresh
  counts = data.token_counts(config.model.vocab_size)
  host = health.with_tables(config, program.executor.fetch(fresh), counts)
  return program.executor.place(host)


def run(config: Config, folder: Path, control: Control | None = None) -> dict:
  """Trains, evaluates and saves one run in `folder`, from where it stands there.

  Returns what done.json holds. Raises Stopped when `control` asked for it and the run has saved
  itself, NonFinite when the run diverged, UserError for what the user can mend.
  """
  found = None
  with contextlib.closing(life(config, folder, control or Control())) as wants:
    while True:
      try:
        compute, *given = wants.send(found)
      except StopIteration as end:
        return end.value
      found = compute(*given)


def life(
  config: Config,
  folder: Path,
  control: Control,
  program_of: Callable[[Config], Program] = program,
) -> Life:
  """The same, a step at a time: yields (a step of its program, state, batch), is sent the result.

  program_of: gives the program once the data are there.
  """
  if resolve(config) != config:
    raise ValueError('train.run takes a resolved config')
  with hosts.desk(folder) as desk:
    return (yield from _Run(config, folder, desk, control, program_of).go())


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


class _Run:
  """One cell's life; `go` is its story.

  Several processes go through it side by side: each writes at its `desk`, which for the first is
  the run's folder, and all have their part of a checkpoint.
  """

  def __init__(
    self,
    config: Config,
    folder: Path,
    desk: Path,
    control: Control,
    program_of: Callable[[Config], Program],
  ):
    self.config, self.folder, self.desk, self.control = config, folder, desk, control
    self.program_of = program_of
    self.stops = hosts.Agreement()
    self.tokens = config.data.batch_size * config.data.seq_len
    self.last_norm = math.nan
    self.origin: dict | None = None  # for provenance, where the run begins from another one
    self.start, self.before = time.perf_counter(), 0.0  # seconds of earlier sittings

  def go(self) -> Life:
    train = self.config.train
    self._beat(0, 'preparing')
    self.data = hosts.together(lambda: data.load(self.config))
    hosts.check_same('data', self.data.fingerprint)
    hosts.check_same('code', provenance.code_digest(self.config))
    self.program = self.program_of(self.config)
    self.part = self.program.executor.part
    with contextlib.closing(
      Checkpoints(self.folder / 'checkpoints', train.keep_last, train.keep_best)
    ) as self.checkpoints:
      return (yield from self._train(*self._restore()))

  def _train(self, current: TrainState, begin: int, saved: dict) -> Life:
    train, steps = self.config.train, self.config.train.steps
    provenance.write(self.desk, self.config, self.data.fingerprint, self.data.info, self.origin)
    if self.data.tokenizer:  # what text this run can read, whatever becomes of its source
      (self.desk / TOKENIZER).write_text(self.data.tokenizer.to_json(), encoding='utf-8')
    attached = hosts.together(
      lambda: boards.attach(self.config, self.folder, begin) if hosts.first() else []
    )
    with contextlib.closing(
      MetricsLog(self.desk, begin, saved, train.log_every, self.tokens, attached)
    ) as self.log:
      evaluated: dict[str, float] = {}
      self._beat(begin, 'compiling')
      for i in range(begin, steps):
        now, batch = i + 1, self.program.put_part(self.data.train_batch(i, *self.part))
        looked = {}
        if train.diagnose and now % train.diagnose == 0:
          looked = self.program.training_statistics(current, self._whole_batch(i))
        current, metrics = yield self.program.train_step, current, batch
        self.log.add(now, metrics, looked)
        if self.log.due(now):
          self.log.flush(functools.partial(self._watch, current), before=now)
        self._beat(now, 'training')
        last, stop = now == steps, self.stops(self.control.stop)
        evaluate = last or now % train.eval_every == 0
        if evaluate or now % train.checkpoint_every == 0 or stop:
          self.log.flush(functools.partial(self._watch, current))
          self.log.pause()
          evaluated = (yield from self._evaluate(current, now)) if evaluate else {}
          self._save(current, now, evaluated)
          if stop and not last:
            self.checkpoints.wait()
            raise Stopped(f'stopped at step {now} of {steps}')
          self.log.resume()
      if not evaluated:  # resumed after the last step
        evaluated = hosts.share(lambda: self._evaluation(steps))
        evaluated = evaluated or (yield from self._evaluate(current, steps))
    if evaluated['eval/loss'] is None or not math.isfinite(evaluated['eval/loss']):
      raise NonFinite(f'the held-out loss at step {steps} is not finite')
    return self._result(current, evaluated)

  def _whole_batch(self, i: int) -> dict[str, np.ndarray]:
    return self.program.batch(self.data.train_batch(i))

  def _restore(self) -> tuple[TrainState, int, dict]:
    fresh = self.program.init(self.config)
    if self.checkpoints.empty:
      return *self._begin(with_counts(self.config, self.program, self.data, fresh)), {}
    like = jax.tree.map(_abstract, self.program.executor.fetch(fresh))
    del fresh  # or memory would have to hold it beside the one restored
    restored, host = self.checkpoints.restore(like)
    if host['data'] != self.data.fingerprint:
      raise UserError(
        f'{self.folder}: was trained on other data ({host["data"][:8]}, now '
        f'{self.data.fingerprint[:8]}); choose another --workdir or --recompute'
      )
    self.before = host['seconds']
    restored = restored.replace(hyper=state.hyper_arrays(self.config))
    return self.program.executor.place(restored), int(restored.step), host

  def _begin(self, fresh: TrainState) -> tuple[TrainState, int]:
    """The state of a run that has no checkpoint yet, and its step."""
    origin = runs.origin(self.config)
    if origin is None:
      return fresh, 0
    check_tokenizer(
      self.config, origin, self.data.tokenizer.to_json() if self.data.tokenizer else None
    )
    print(origin.describe(self.config))
    begun, self.origin = begin(self.config, origin, self.program.executor.fetch(fresh))
    return self.program.executor.place(begun), int(begun.step)

  def _evaluate(self, current: TrainState, now: int) -> Life:
    """Mean loss over all held-out tokens, as a row; after the last step also scores of texts."""
    self._beat(now, 'evaluating')
    sums: list[dict] = []
    batches = self.data.eval_batches()
    while ahead := [self.program.put(tokens) for tokens in itertools.islice(batches, _AHEAD)]:
      found = []
      for batch in ahead:
        found.append((yield self.program.evaluate, current, batch))
      sums += jax.device_get(found)
      self._beat(now, 'evaluating')
    sums = jax.tree.map(lambda *x: np.sum(np.asarray(x, np.float64), axis=0), *sums)
    if not sums['targets']:
      raise UserError(
        f'--loss.mask_rate={self.config.loss.mask_rate}: hides no token of the held-out text, so '
        'there is nothing to find again; ask for more, or for a larger --data.held_out'
      )
    nats = float(sums['nats'])
    row = {'eval/loss': nats / float(sums['targets'])}
    if self.data.held_out_bytes and self.config.model.architecture != 'encoder':
      row['eval/bits_per_byte'] = float(nats / math.log(2) / self.data.held_out_bytes)
    if now == self.config.train.steps and translate.wanted(self.config, self.data):
      beat = functools.partial(self._beat, now, 'decoding')
      params = parallel.whole(self.program.executor.fetch(current.eval_params))
      row |= translate.score(self.config, params, self.data, self.desk, beat)
    if now == self.config.train.steps and liking.wanted(self.config):
      decide = functools.partial(self.program.choices, current.eval_params)
      liking.write(self.config, decide, self.data, self.desk)
    if routed := health.health(self.config, sums['routed']):
      named = {f'eval_{name}': pair for name, pair in jax.device_get(routed).items()}
      self.log.write(now, means(named))
    if self.config.train.ffn_statistics and (looked := self._ffn_row(current)):
      self.log.write(now, looked)
    self.log.write(now, row)
    return row

  def _ffn_row(self, current: TrainState) -> dict[str, float]:
    """What the FFN makes of the first held-out rows."""
    tokens = next(iter(self.data.eval_batches()))
    rows = max(1, _LOOKED_AT // self.config.data.seq_len)
    found = self.program.ffn_statistics(current.eval_params, {'tokens': tokens[:rows]})
    return spread(diagnose.with_spectra(found))

  def _evaluation(self, step: int) -> dict[str, float]:
    """What the rows written before say of `step`; empty if it was not evaluated."""
    rows = [row for row in read(self.folder / FILE) if row['step'] == step and 'eval/loss' in row]
    return {k: v for row in rows for k, v in row.items() if k.startswith('eval/')}

  def _save(self, current: TrainState, now: int, evaluated: dict[str, float]) -> None:
    """Rows first, then the checkpoint that stands for them."""
    self._beat(now, 'saving')
    self.control.check()
    self.log.sync()
    seconds = self.before + time.perf_counter() - self.start
    host = {**self.log.state, 'data': self.data.fingerprint, 'seconds': seconds}
    self.checkpoints.save(self.program.executor.fetch(current), host, evaluated or None)

  def _watch(self, current: TrainState, now: int, metrics: dict) -> None:
    """Keeps what it takes to repeat a bad step, ends a run that has too many of them in a row."""
    in_a_row, norm = metrics['bad']
    rate = float(metrics['train/learning_rate'][0])
    if not in_a_row:
      self.last_norm = float(norm)
      return
    if hosts.first() and bad.is_wanted(self.folder, now):
      self.checkpoints.wait()  # what is not complete cannot be kept
      batch = self._whole_batch(now - 1)
      bad.keep(self.folder, now, int(in_a_row), batch, self.program.executor.fetch(current))
    if in_a_row >= self.config.train.max_bad_steps:
      known = not math.isnan(self.last_norm)
      before = f'at the last good step {self.last_norm:.3g}' if known else 'no good step before'
      raise NonFinite(
        f'{int(in_a_row)} steps in a row without a finite loss, gradient and update, up to step '
        f'{now}: learning rate {rate:.3g}, gradient norm {norm:.3g}, {before} '
        f'(--train.max_bad_steps={self.config.train.max_bad_steps})'
      )

  def _beat(self, now: int, phase: str) -> None:
    last = self.log.last if hasattr(self, 'log') else {}
    self.control.beat(
      step=now,
      steps=self.config.train.steps,
      loss=last.get('train/loss'),
      tokens_per_s=last.get('perf/tokens_per_s'),
      spikes=self.log.spikes if hasattr(self, 'log') else 0,
      phase=phase,
    )

  def _result(self, current: TrainState, evaluated: dict[str, float]) -> dict:
    key = 'perf/tokens_per_s'
    rates = [row[key] for row in read(self.desk / FILE) if key in row]
    origin = runs.provenance(self.desk).get('origin')
    return {
      'step': self.config.train.steps,
      **evaluated,
      'tokens_per_s': statistics.median(rates) if rates else None,
      'seconds': self.before + time.perf_counter() - self.start,
      'skipped_steps': int(self.program.executor.fetch(current).skipped),
      'spikes': self.log.spikes,
      'params': count.params(self.config),
      'tokens': count.train_tokens(self.config),
      'data': self.data.fingerprint,
      **({'origin': origin['identity']} if origin else {}),
    }
