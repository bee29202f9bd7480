"""Executors agree: the same run on one device, replicated by pmap, and over meshes of eight."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from tests import battery
from transformer import parallel, step
from transformer.config import Config
from transformer.errors import UserError
from transformer.train import Program

LAYOUTS = {
  'pmap': {'parallel.mode': 'pmap', 'parallel.mesh': ''},
  'data:8': {'parallel.mesh': 'data:8'},
  'data:4,fsdp:2': {'parallel.mesh': 'data:4,fsdp:2'},
  'data:2,fsdp:2,tensor:2': {'parallel.mesh': 'data:2,fsdp:2,tensor:2'},
  'fsdp:8': {'parallel.mesh': 'fsdp:8'},
}
# Devices hold from no target at all to two full rows; noise and micro-batches are in it too.
# eps keeps Adam from turning the rounding of a gradient near 0 into a whole step.
SETTINGS = {
  'data.batch_size': 16,
  'train.accumulate': 2,
  'model.dropout': 0.2,
  'ffn.activation': 'swiglu',
  'optim.learning_rate': 0.01,
  'optim.name': 'adamw(eps=1e-5)',
}
TOLERANCE = 1e-5  # of parameters of size 1, float32: only the order of sums differs
STEPS = 4


def config_of(layout: str) -> Config:
  return battery.tiny(**SETTINGS | LAYOUTS.get(layout, {}))


def batches(config: Config) -> list[np.ndarray]:
  return [battery.tokens(config, seed, padding=True) for seed in range(STEPS)]


class Run:
  """Four steps and an evaluation on one layout; what is compared, and the live state."""

  def __init__(self, layout: str):
    self.config = config_of(layout)
    self.program = Program(self.config)
    self.state = self.program.init(self.config)
    self.metrics, self.compiled = [], []
    for tokens in batches(self.config):
      with battery.compilations() as seconds:
        self.state, metrics = self.program.train_step(self.state, self.program.put(tokens))
      self.metrics.append(jax.device_get(metrics))
      self.compiled.append(len(seconds))
    held_out = self.program.put(batches(self.config)[0])
    self.evaluated = np.asarray(self.program.eval_step(self.state.params, held_out))
    self.fetched = jax.device_get(self.program.executor.fetch(self.state))


@functools.cache
def run(layout: str) -> Run:
  return Run(layout)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_agrees_with_one_device(layout):
  one, got = run('data:1'), run(layout)
  assert battery.largest_difference(got.fetched.params, one.fetched.params) < TOLERANCE
  assert battery.largest_difference(got.fetched.opt_state, one.fetched.opt_state) < TOLERANCE
  for ours, theirs in zip(got.metrics, one.metrics, strict=True):
    assert ours.keys() == theirs.keys()
    for name in ours:
      np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, err_msg=name)
  np.testing.assert_allclose(got.evaluated, one.evaluated, rtol=1e-5)
  assert int(got.fetched.step) == STEPS and int(got.fetched.skipped) == 0
  moved = battery.largest_difference(
    one.fetched.params, jax.device_get(one.program.init(one.config).params)
  )
  assert moved > 1000 * TOLERANCE  # there was something to agree about


def no_sum(tree):
  return tree


def mean_of_means(tree):
  grads, (loss, count) = tree
  mean = lambda x: jax.lax.pmean(x / jax.numpy.maximum(count, 1), 'devices')  # noqa: E731
  return jax.tree.map(mean, grads), (mean(loss), jax.numpy.ones(()))


@pytest.mark.parametrize('wrong', [no_sum, mean_of_means])
def test_a_wrong_reduction_would_be_seen(wrong):
  config = config_of('pmap')
  program = Program(config)
  current = program.init(config)
  train = program.executor.compile(
    lambda state, batch, reduce: step.train_step(config, state, batch, wrong)
  )
  for tokens in batches(config):
    current, _ = train(current, program.put(tokens))
  got = program.executor.fetch(current)
  assert battery.largest_difference(got.params, run('data:1').fetched.params) > 100 * TOLERANCE


@pytest.mark.parametrize('layout', ['data:1', *LAYOUTS])
def test_only_the_first_step_compiles(layout):
  assert run(layout).compiled[1:] == [0] * (STEPS - 1)


SHARDS = {  # of arrays (32, 16), (2, 16, 2, 8), … by the letters: D over fsdp, N F V over tensor
  'data:2,fsdp:2,tensor:2': {
    'embed/table': (16, 8),
    'layers/attention/query': (2, 8, 1, 8),
    'layers/attention/out': (2, 1, 8, 8),
    'layers/attention_norm/scale': (2, 8),
    'layers/ffn/up': (2, 8, 12),
    'layers/ffn/gate': (2, 8, 12),
    'layers/ffn/down': (2, 12, 8),
    'final_norm/scale': (8,),
  },
  'fsdp:8': {
    'embed/table': (32, 2),
    'layers/attention/query': (2, 2, 2, 8),
    'layers/attention/out': (2, 2, 8, 2),
    'layers/ffn/up': (2, 2, 24),
    'layers/ffn/down': (2, 24, 2),
    'final_norm/scale': (2,),
  },
  'data:8': {'embed/table': (32, 16), 'layers/ffn/up': (2, 16, 24)},
}


@pytest.mark.parametrize('layout', SHARDS)
def test_parameters_and_moments_lie_as_the_letters_say(layout):
  """After training as before it: each device holds its share and no more."""
  found = run(layout)
  for current in (found.state, found.program.init(found.config)):
    leaves = jax.tree_util.tree_flatten_with_path(current)[0]
    for key_path, leaf in leaves:
      path = parallel.path_of(key_path)
      for end, shape in SHARDS[layout].items():
        if path.endswith(end):
          assert {s.data.shape for s in leaf.addressable_shards} == {shape}, path
          assert len(leaf.addressable_shards) == 8
      if path.startswith(('step', 'key', 'hyper', 'bad_steps', 'skipped')):
        assert leaf.sharding.is_fully_replicated, path
    moments = [path for path, _ in leaves if parallel.path_of(path).startswith('opt_state')]
    assert len(moments) > 2 * len(SHARDS[layout])


def test_batches_are_shared_out_by_row():
  program = run('data:4,fsdp:2').program
  batch = program.put(batches(run('data:4,fsdp:2').config)[0])
  assert {s.data.shape for s in batch['tokens'].addressable_shards} == {(2, 9)}
  assert {s.data.shape for s in batch['rows'].addressable_shards} == {(2,)}


@pytest.mark.parametrize('layout', ['data:1', 'pmap', 'data:2,fsdp:2,tensor:2'])
def test_a_state_goes_to_the_host_and_back(layout):
  """As a checkpoint does it: the same bits, and the next step compiles nothing."""
  found = run(layout)
  placed = found.program.executor.place(found.fetched)
  assert battery.same_bits(found.program.executor.fetch(placed), found.fetched)
  with battery.compilations() as seconds:
    found.program.train_step(placed, found.program.put(batches(found.config)[0]))
  assert seconds == []


def test_every_replica_of_pmap_is_the_same():
  for path, leaf in battery.flat(run('pmap').state).items():
    assert leaf.shape[0] == 8
    assert all(np.array_equal(leaf[0], other) for other in leaf[1:]), path


@pytest.mark.parametrize(
  ('changes', 'kind'),
  [
    ({}, parallel.MeshParallel),
    ({'parallel.mode': 'mesh'}, parallel.MeshParallel),
    ({'parallel.mode': 'pmap'}, parallel.PmapParallel),
    ({'parallel.mesh': 'tensor:2'}, parallel.MeshParallel),
    ({'parallel.mesh': 'data:2', 'parallel.mode': 'mesh'}, parallel.MeshParallel),
  ],
)
def test_which_executor(changes, kind):
  assert type(parallel.make(battery.tiny(**{'parallel.mesh': ''} | changes))) is kind


def test_without_a_mesh_all_devices_share_the_batch():
  executor = parallel.make(battery.tiny(**{'parallel.mesh': ''}))
  batch = executor.put({'tokens': np.zeros((8, 9), np.int32)})
  assert {s.data.shape for s in batch['tokens'].addressable_shards} == {(1, 9)}


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'parallel.mesh': 'data:16'},
      '--parallel.mesh=data:16: needs 16 devices, 8 present',
    ),
    (
      {'parallel.mesh': 'data:2,fsdp:3,tensor:2'},
      '--parallel.mesh=data:2,fsdp:3,tensor:2: needs 12 devices, 8 present',
    ),
    (
      {'data.batch_size': 12},
      '--data.batch_size=12: 12 sequences a micro-batch (--train.accumulate=1) are not divisible '
      'by 8 devices',
    ),
    (
      {'data.batch_size': 16, 'train.accumulate': 4, 'parallel.mode': 'pmap'},
      '--data.batch_size=16: 4 sequences a micro-batch (--train.accumulate=4) are not divisible '
      'by 8 devices',
    ),
    (
      {'data.batch_size': 6, 'parallel.mesh': 'data:2,fsdp:2'},
      '--data.batch_size=6: 6 sequences a micro-batch (--train.accumulate=1) are not divisible '
      'by 4 devices',
    ),
  ],
)
def test_what_does_not_fit(changes, message):
  config = battery.tiny(**{'parallel.mesh': ''} | changes)
  with pytest.raises(UserError) as e:
    parallel.make(config)
  assert str(e.value) == message
