"""Runs with experts, interrupted, continued, tuned: what routers keep goes with the weights."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from launch.cells import Cell, write_config
from tests import battery
from tests.processes import assert_same_params, cell, rows
from tests.test_decode import PROMPTS, greedily
from transformer import data, decode, health, replay, runs, state, train
from transformer.checkpoint import load_params
from transformer.errors import UserError
from transformer.params import merge

OURS = {
  'moe.experts': 4,
  'data.seq_len': 12,
  'train.steps': 8,
  'train.log_every': 2,
  'train.checkpoint_every': 4,
  'train.eval_every': 8,
  'train.keep_last': 2,
  'optim.learning_rate': 0.02,
  'parallel.mesh': 'data:1',
}
BIAS = OURS | {'moe.router': 'bias(rate=0.01)', 'optim.ema': 0.9, 'train.diagnose': 4}
HASH = OURS | {'moe.router': 'hash(k=2, balanced=True)'}
STILL = {'optim.learning_rate': 1e-30, 'optim.weight_decay': 0.0}


class StopAt(train.Control):
  """Asks a run to stop after step 3."""

  def beat(self, **progress: object) -> None:
    self.stop = progress['step'] >= 3


def _run(c: Cell, workdir: Path, stopped: bool = False) -> Path:
  workdir.mkdir(exist_ok=True)
  write_config(c, workdir)
  if stopped:
    with pytest.raises(train.Stopped):
      train.run(c.config, c.folder(workdir), StopAt())
  train.run(c.config, c.folder(workdir))
  return c.folder(workdir)


@pytest.fixture(scope='module', params=[BIAS, HASH], ids=['bias', 'hash'])
def settings(request: pytest.FixtureRequest) -> dict:
  return request.param


@pytest.fixture(scope='module')
def whole(settings: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
  """An undisturbed run."""
  return _run(cell('any', **settings), tmp_path_factory.mktemp('whole') / 'run')


def _kept(folder: Path, step: int | None = None) -> dict[str, np.ndarray]:
  found = battery.flat(load_params(folder / 'checkpoints', step)[1])
  return {path: x for path, x in found.items() if path.endswith(('_bias', '_table'))}


def test_a_step_before_the_first_checkpoint_is_replayed_with_what_routers_knew(
  settings: dict, whole: Path
) -> None:
  config = runs.read_config(whole)
  opened = lambda: data.load(config)  # noqa: E731
  begun, at = replay._state_before(whole, config, train.program(config), 2, opened)
  assert at == 0
  table = {k: x for k, x in battery.flat(begun.model_state).items() if k.endswith('_table')}
  assert all(np.array_equal(x, _kept(whole)[path]) for path, x in table.items())
  assert bool(table) == (settings is HASH)


def test_interrupted_and_continued_it_is_the_same_to_the_bit(
  settings: dict, whole: Path, tmp_path: Path
) -> None:
  assert len(_kept(whole)) == 1 and all(np.any(x) for x in _kept(whole).values())
  names = {key.split('/')[1] for row in rows(whole) for key in row if key.startswith('router/')}
  assert names >= {'load', 'max_violation', 'dropped'}
  folder = _run(cell('any', **settings), tmp_path, stopped=True)
  assert rows(folder) == rows(whole)
  assert_same_params(folder, whole)
  begun = cell('any', **settings, **{'train.init': 'continue', 'train.init_from': f'{whole}@4'})
  continued = _run(begun, tmp_path / 'continued')
  assert rows(continued) == [row for row in rows(whole) if row['step'] > 4]
  assert_same_params(continued, whole)


def test_fine_tuning_takes_what_routers_keep(settings: dict, whole: Path, tmp_path: Path) -> None:
  """A table stays that of the first run's data, however frequent tokens are in the second's."""
  other = {'moe.router': 'bias(rate=0)'} if settings is BIAS else {'data.source': 'synthetic'}
  changes = STILL | other | {'train.init_from': str(whole), 'train.steps': 1}
  tuned = _run(cell('any', **settings | changes), tmp_path)
  one, many = _kept(tuned), _kept(whole)
  assert battery.same_bits(one, many)
  if settings is HASH:  # negative control: it would be another
    changes.pop('train.init_from')
    assert not battery.same_bits(_kept(_run(cell('any', **settings | changes), tmp_path)), many)


def test_what_routers_keep_must_be_there(settings: dict, whole: Path) -> None:
  other = {'moe.router': 'topk'} if settings is BIAS else {'moe.router': 'hash(k=2)'}
  name, shape = ('router_bias', (1, 4)) if settings is BIAS else ('router_table', (1, 32))
  with pytest.raises(UserError) as e:
    runs.origin(cell('any', **settings | other, **{'train.init_from': str(whole)}).config)
  assert str(e.value) == (
    f'--train.init_from={whole}: its tensor layers/ffn/{name} is {shape}, here absent; give the '
    f'shape of that run, which is in {whole / "config.json"}'
  )


def test_what_is_decoded_is_what_the_trained_model_says(settings: dict, whole: Path) -> None:
  """Greedy over ragged prompts, from kept keys and asked anew; a beam of one is greedy."""
  config, (_, params) = cell('any', **settings).config, load_params(whole / 'checkpoints')
  expected = [greedily(config, params, prompt, 6) for prompt in PROMPTS]
  got = decode.generate(config, params, PROMPTS, 6)
  assert [list(ids) for ids in got] == expected
  beams = decode.beam_search(config, params, PROMPTS, 6, 1)
  assert [list(found[0].ids) for found in beams] == expected
  (path,) = _kept(whole)  # negative control: other experts are chosen
  moved = np.float32(np.arange(4 if settings is BIAS else 32))
  other = merge(params, {'layers': {'ffn': {path.split('/')[-1]: moved[None]}}})
  assert [list(ids) for ids in decode.generate(config, other, PROMPTS, 6)] != expected


def test_a_table_deals_out_ids_by_how_often_they_occur() -> None:
  """By hand: 5, 4, 3, 3, 1 and 0 times go to 0, 1, 2, 3, 2 and, as the first has least, 3."""
  config = cell('any', **HASH).config
  fresh = jax.eval_shape(lambda: state.create(config, 0, state.hyper_arrays(config)))
  counts = np.array([3, 5, 1, 4, 0, 3] + [0] * 26)
  table = health.with_tables(config, fresh, counts).model_state['layers']['ffn']['router_table'][0]
  assert [(i + int(t)) % 4 for i, t in enumerate(table)][:6] == [2, 0, 2, 1, 3, 3]


def test_a_bad_step_leaves_what_routers_keep_alone(settings: dict) -> None:
  config = cell('any', **settings).config
  program, loaded = train.program(config), data.load(config)
  good, _ = program.train_step(program.init(config), program.put(loaded.train_batch(0)))
  good = jax.device_get(good)
  both = battery.flat(good.ema or good.params) | battery.flat(good.model_state)
  assert battery.same_bits(battery.flat(good.eval_params), both)
  ends = []
  for change in (np.nan, 0.0):
    broken = good.replace(params=battery.poke(good.params, 'final_norm/scale', change))
    batch = program.put(loaded.train_batch(1))
    ends.append(jax.device_get(program.train_step(program.executor.place(broken), batch)[0]))
  assert [int(after.skipped) for after in ends] == [1, 0]
  assert battery.same_bits(ends[0].model_state, good.model_state)
  moves = not battery.same_bits(ends[1].model_state, good.model_state)  # negative control
  assert moves == (settings is BIAS)
