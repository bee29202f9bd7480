"""Executors agree: the same run on one device, replicated by pmap, and over meshes of eight."""

from __future__ import annotations

import functools
import re

import jax
import numpy as np
import pytest

from tests import battery
from transformer import parallel, step
from transformer.config import Config
from transformer.errors import UserError
from transformer.params import merge
from transformer.state import TrainState
from transformer.train import Program

LAYOUTS = {
  'pmap': {'parallel.mode': 'pmap', 'parallel.mesh': ''},
  'data:8': {'parallel.mesh': 'data:8'},
  'data:4,fsdp:2': {'parallel.mesh': 'data:4,fsdp:2'},
  'data:2,fsdp:2,tensor:2': {'parallel.mesh': 'data:2,fsdp:2,tensor:2'},
  'fsdp:8': {'parallel.mesh': 'fsdp:8'},
  'expert:4': {'parallel.mesh': 'data:2,expert:4', 'moe.dispatch': 'expert_parallel'},
  'pmap, whole': {'parallel.mode': 'pmap', 'parallel.mesh': '', 'train.accumulate': 1},
  'data:8, whole': {'parallel.mesh': 'data:8', 'train.accumulate': 1},
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
CELLS = {  # other models, on fewer layouts
  'swiglu': {},
  'many': {
    'model.num_layers': 3,
    'model.num_heads': 4,
    'model.num_kv_heads': 2,
    'model.qk_norm': True,
    'model.qkv_bias': True,
    'model.positions': 'relative(buckets=5, max_distance=6)',
    'model.norm_placement': 'sandwich',
    'model.stochastic_depth': 0.3,
    'model.tied': False,
    'ffn.activation': 'prelu',
    'ffn.ratios': '1,1,2',
    'ffn.dropout': 0.2,
    'ffn.bias': True,
  },
  'shared': {
    'model.num_heads': 4,
    'model.num_kv_heads': 1,
    'model.positions': 'alibi',
    'model.norm_placement': 'post',
    'model.parallel_branches': True,
    'ffn.activation': 'product(leaky_relu(0.1), prelu)',
    'ffn.shared': True,
    'ffn.hidden_layers': 2,
    'ffn.dropout': 0.2,
  },
  'encoder': {
    'model.architecture': 'encoder',
    'model.positions': 'learned',
    'model.norm': 'layernorm',
    'model.embedding_norm': True,
    'model.head': 'transform',
    'ffn.activation': 'gelu',
    'loss.mask_rate': 0.4,
  },
  'source': {
    'model.architecture': 'encoder_decoder',
    'model.num_encoder_layers': 1,
    'model.positions': 'relative(buckets=5, max_distance=6)',
    'model.v_head_dim': 4,
    'model.shared_source': False,
    'ffn.encoder_activation': 'relu',
    'data.source_len': 6,
  },
  'experts': {  # with jitter, and too few places
    'model.num_heads': 0,
    'model.positions': 'none',
    'model.dropout': 0.0,
    'moe.experts': 4,
    'moe.router': 'bias(jitter=0.2, rate=0.01)',
    'moe.dispatch': 'capacity',
    'moe.capacity_factor': 0.75,
    'moe.group_size': 4,
    'moe.shared_experts': 1,
    'moe.z_loss': 0.01,
    'ffn.bias': True,
    'ffn.dropout': 0.2,
  },
  'dropless': {
    'model.num_heads': 0,
    'model.positions': 'none',
    'model.dropout': 0.0,
    'moe.experts': 4,
    'moe.balance_loss': 0.1,
    'ffn.activation': 'relu',
    'ffn.dropout': 0.2,
  },
}
TENSOR = 'data:2,fsdp:2,tensor:2'
RUNS = [(layout, 'swiglu') for layout in ('pmap', TENSOR, 'fsdp:8')]
RUNS += [('expert:4', 'experts')]
MORE = [(TENSOR, 'source'), ('data:8, whole', 'dropless'), ('pmap, whole', 'experts')]
MORE += [('data:8', 'swiglu'), *((TENSOR, cell) for cell in ('many', 'shared', 'encoder'))]
MORE += [('pmap', cell) for cell in ('shared', 'encoder', 'source')]
RUNS += [pytest.param(*run, marks=pytest.mark.exhaustive) for run in MORE]
TOLERANCE = 2e-5  # of parameters of size 1, float32: only the order of sums differs
STEPS = 4


def config_of(layout: str, cell: str = 'swiglu') -> Config:
  return battery.tiny(**SETTINGS | CELLS[cell] | LAYOUTS.get(layout, {}))


def batches(config: Config) -> list[np.ndarray]:
  return [battery.rows(config, seed, padding=True) for seed in range(STEPS)]


class Run:
  """Four steps and an evaluation on one layout; what is compared, and the live state."""

  def __init__(self, layout: str, cell: str):
    self.config = config_of(layout, cell)
    self.program = Program(self.config)
    self.state = self.program.init(self.config)
    self.begun = jax.device_get(self.program.executor.fetch(self.state).params)
    self.metrics, self.compiled = [], []
    for tokens in batches(self.config):
      with battery.compilations() as seconds:
        self.state, metrics = self.program.train_step(self.state, self.program.put(tokens))
      self.metrics.append(jax.device_get(metrics))
      self.compiled.append(len(seconds))
    held_out = self.program.put(batches(self.config)[0])
    sums = self.program.eval_step(self.state.variables, held_out)
    self.evaluated = np.array([sums['nats'], sums['targets']])
    self.fetched = jax.device_get(self.program.executor.fetch(self.state))


@functools.cache
def run(layout: str, cell: str = 'swiglu') -> Run:
  return Run(layout, cell)


SHARDS = {  # of arrays (32, 16), (2, 16, 2, 8), … by the letters: D over fsdp, N K F V over tensor
  (TENSOR, 'swiglu'): {
    'embed/table': (16, 8),
    'layers/attention/query': (2, 8, 1, 8),
    'layers/attention/out': (2, 1, 8, 8),
    'layers/attention_norm/scale': (2, 8),
    'layers/ffn/up': (2, 8, 12),
    'layers/ffn/gate': (2, 8, 12),
    'layers/ffn/down': (2, 12, 8),
    'final_norm/scale': (8,),
  },
  ('fsdp:8', 'swiglu'): {
    'embed/table': (32, 2),
    'layers/attention/query': (2, 2, 2, 8),
    'layers/attention/out': (2, 2, 8, 2),
    'layers/ffn/up': (2, 2, 24),
    'layers/ffn/down': (2, 24, 2),
    'final_norm/scale': (2,),
  },
  ('data:8', 'swiglu'): {'embed/table': (32, 16), 'layers/ffn/up': (2, 16, 24)},
  (TENSOR, 'many'): {  # (2, 16, 2, 4), (1, 16, 48), …
    'layers_0/attention/key': (2, 8, 1, 4),
    'layers_2/attention/query': (1, 8, 2, 4),
    'layers_0/attention/value_bias': (2, 1, 4),
    'layers_0/attention/query_norm/scale': (2, 4),
    'layers_0/ffn/up': (2, 8, 9),
    'layers_2/ffn/up': (1, 8, 18),
    'layers_0/ffn/prelu_slope': (2, 9),
    'layers_2/ffn/prelu_slope': (1, 18),
    'layers_2/ffn/up_bias': (1, 18),
    'positions/bias': (5, 2),
    'unembed/table': (16, 8),
  },
  (TENSOR, 'shared'): {  # one head of keys is on all devices; one FFN for all has no letter L
    'layers/attention/key': (2, 8, 1, 4),
    'layers/attention/query': (2, 8, 2, 4),
    'ffn/up': (8, 12),
    'ffn/middle_gate': (12, 24),
    'ffn/up_prelu_slope': (12,),
    'ffn/middle_up_prelu_slope': (12,),
    'ffn/down': (12, 8),
  },
  (TENSOR, 'encoder'): {
    'positions/table': (8, 8),
    'head/transform': (8, 16),
    'embed/table': (16, 8),
  },
  (TENSOR, 'source'): {
    'source_embed/table': (16, 8),
    'source_positions/bias': (5, 1),
    'encoder_layers/ffn/up': (1, 8, 12),
    'layers/cross_attention/query': (2, 8, 1, 8),
    'layers/cross_attention/value': (2, 8, 1, 4),
    'layers/cross_attention/out': (2, 1, 4, 8),
  },
  ('expert:4', 'experts'): {  # (2, 16, 4), (2, 4, 16, 24), …: experts lie spread out
    'layers/ffn/router': (2, 16, 1),
    'layers/ffn/experts/up': (2, 1, 16, 24),
    'layers/ffn/experts/gate_bias': (2, 1, 24),
    'layers/ffn/experts/down': (2, 1, 24, 16),
    'layers/ffn/shared/up': (2, 16, 24),
  },
}


@pytest.mark.parametrize(('layout', 'cell'), RUNS)
def test_agrees_with_one_device(layout, cell):
  """In its results; it compiles once, lies as the letters say, and survives a checkpoint."""
  one, got = run('data:1', cell), run(layout, cell)
  assert_same_results(got, one)
  for found in (got, one):
    assert found.compiled[1:] == [0] * (STEPS - 1)
  if (layout, cell) in SHARDS:
    assert_shards(got, SHARDS[layout, cell])
  if layout.startswith('pmap'):
    assert_replicas_are_the_same(got)
  assert_goes_to_the_host_and_back(got)


def assert_same_results(got: Run, one: Run) -> None:
  assert battery.largest_difference(got.fetched.params, one.fetched.params) < TOLERANCE
  assert battery.largest_difference(got.fetched.opt_state, one.fetched.opt_state) < TOLERANCE
  assert battery.same_bits(got.fetched.model_state, one.fetched.model_state)
  for ours, theirs in zip(got.metrics, one.metrics, strict=True):
    assert ours.keys() == theirs.keys()
    for name in ours:
      np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, err_msg=name)
  np.testing.assert_allclose(got.evaluated, one.evaluated, rtol=1e-5)
  assert int(got.fetched.step) == STEPS and int(got.fetched.skipped) == 0
  begun, ended = (battery.flat(p) for p in (one.begun, one.fetched.params))
  for path in begun:  # there was something to agree about
    assert np.max(np.abs(ended[path] - begun[path])) > 100 * TOLERANCE, path


def assert_shards(found: Run, shards: dict[str, tuple]) -> None:
  """After training as before it: each device holds its share and no more, of moments as well."""
  for current in (found.state, found.program.init(found.config)):
    leaves = jax.tree_util.tree_flatten_with_path(current)[0]
    by_path = {parallel.path_of(key_path): leaf for key_path, leaf in leaves}
    for end, shape in shards.items():
      same = [leaf for path, leaf in by_path.items() if f'/{path}'.endswith(f'/{end}')]
      assert len(same) == 3, end  # itself and two moments
      for leaf in same:
        assert {s.data.shape for s in leaf.addressable_shards} == {shape}, end
        assert len(leaf.addressable_shards) == 8
    for path, leaf in by_path.items():
      if path.startswith(('step', 'key', 'hyper', 'bad_steps', 'skipped')):
        assert leaf.sharding.is_fully_replicated, path


def assert_replicas_are_the_same(found: Run) -> None:
  for path, leaf in battery.flat(found.state).items():
    assert leaf.shape[0] == 8
    assert all(np.array_equal(leaf[0], other) for other in leaf[1:]), path


def assert_goes_to_the_host_and_back(found: Run) -> None:
  """As a checkpoint does it: the same bits, and the next step compiles nothing."""
  placed = found.program.executor.place(found.fetched)
  assert battery.same_bits(found.program.executor.fetch(placed), found.fetched)
  with battery.compilations() as seconds:
    found.program.train_step(placed, found.program.put(batches(found.config)[0]))
  assert seconds == []


def collectives(layout: str, cell: str) -> dict[str, set[str]]:
  """Kind -> types of what devices give each other for a gradient, in layers of experts."""
  found, kinds = run(layout, cell), {}

  def gradient(current: TrainState, batch: dict) -> dict:
    def objective(params: dict) -> jax.Array:
      variables = merge(params, current.model_state)
      return step.loss_sums(found.config, variables, current.hyper, batch['tokens'], None)[0]

    return jax.grad(objective)(current.params)

  batch = found.program.put(batches(found.config)[0])
  with jax.set_mesh(batch['tokens'].sharding.mesh):
    text = jax.jit(gradient).lower(found.state, batch).compile().as_text()
  for types, kind in re.findall(r'= (.*?) (all-[a-z-]+?)(?:-start)?\(.*/ffn/', text):
    kinds.setdefault(kind, set()).update(re.findall(r'\w+\[[\d,]*\]', types))
  return kinds


def test_rows_go_to_their_experts_and_no_expert_comes_to_rows():
  """All-to-all of rows, 16 wide; of all that is gathered nothing has an expert's 24 units."""
  found = collectives('expert:4', 'experts')
  assert found['all-to-all'] and all(',16]' in shape for shape in found['all-to-all'])
  assert not any('24' in shape for shape in found['all-gather'])


def test_without_drops_every_device_sorts_its_own_tokens():
  """Gathered are the scores alone by which the tokens of all devices choose."""
  found = collectives('data:8, whole', 'dropless')
  assert found['all-gather'] == {'f32[16,8,4]'} and 'all-to-all' not in found


def no_sum(tree):
  return tree


def mean_of_means(tree):
  targets = jax.numpy.maximum(tree[1]['targets'], 1)
  grads, sums = jax.tree.map(lambda x: jax.lax.pmean(x / targets, 'devices'), tree)
  return grads, sums | {'targets': jax.numpy.ones(())}


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


def test_batches_are_shared_out_by_row():
  config = config_of('data:4,fsdp:2')
  batch = Program(config).put(batches(config)[0])
  assert {s.data.shape for s in batch['tokens'].addressable_shards} == {(2, 9)}
  assert {s.data.shape for s in batch['rows'].addressable_shards} == {(2,)}


@pytest.mark.parametrize(
  ('changes', 'kind'),
  [
    ({}, parallel.PmapParallel),  # on CPU
    ({'parallel.mode': 'mesh'}, parallel.MeshParallel),
    ({'parallel.mode': 'pmap'}, parallel.PmapParallel),
    ({'parallel.mesh': 'tensor:2'}, parallel.MeshParallel),
    ({'parallel.mesh': 'data:2', 'parallel.mode': 'mesh'}, parallel.MeshParallel),
  ],
)
def test_which_executor(changes, kind):
  assert type(parallel.make(battery.tiny(**{'parallel.mesh': ''} | changes))) is kind


def test_without_a_mesh_all_devices_share_the_batch():
  executor = parallel.make(battery.tiny(**{'parallel.mesh': '', 'parallel.mode': 'mesh'}))
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
    (
      {'data.batch_size': 6, 'moe.experts': 2, 'parallel.mesh': 'data:2,expert:2'},
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
