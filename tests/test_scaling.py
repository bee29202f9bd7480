"""Formulas of memory and communication, against what compiled programs hold and exchange."""

from __future__ import annotations

import functools
import re
from collections import Counter
from math import prod

import jax
import pytest

from tests import battery
from transformer import axes, count, scaling, step
from transformer.config import Config
from transformer.train import Program

# Weights outweigh scalars and scores; a look into the loop over layers would need its length.
SHAPE = {
  'model.d_model': 64,
  'model.num_heads': 8,
  'model.vocab_size': 128,
  'model.unroll': True,
  'ffn.d_ff': 192,
  'ffn.activation': 'swiglu',
  'data.seq_len': 16,
  'data.batch_size': 16,
}
EXPERTS = {'moe.experts': 8, 'moe.dispatch': 'expert_parallel', 'ffn.activation': 'gelu'}
MESHES = {
  'fsdp:8': {},
  'data:2,fsdp:2,tensor:2': {},
  'data:2,expert:4': EXPERTS,
  'data:8': {},
  'data:2,fsdp:4': {},
  'tensor:8': {'ffn.activation': 'relu'},
  'data:2,tensor:4': {'model.num_layers': 3},
}
EACH = [
  pytest.param(mesh, marks=[pytest.mark.exhaustive] * (i > 2)) for i, mesh in enumerate(MESHES)
]
_ITEM = {'f32': 4, 's32': 4, 'u32': 4, 'bf16': 2, 'pred': 1}


def _config(mesh: str) -> Config:
  return battery.tiny(**SHAPE | MESHES[mesh] | {'parallel.mesh': mesh})


@functools.cache
def collectives(mesh: str) -> list[tuple[str, int, int]]:
  """(kind, bytes of all arrays, of the largest) of each in the compiled training step."""
  config = _config(mesh)
  program = Program(config)
  state, batch = program.init(config), program.put(battery.rows(config))
  function = jax.jit(lambda state, batch: step.train_step(config, state, batch, lambda x: x))
  with jax.set_mesh(batch['tokens'].sharding.mesh):
    text = function.lower(state, batch).compile().as_text()
  found = []
  for types, kind in re.findall(r'= (.*?) (all-[a-z-]+?|reduce-scatter)(?:-start)?\(', text):
    sizes = [
      _ITEM[item] * prod(int(n) for n in dims.split(',') if n)
      for item, dims in re.findall(r'(\w+)\[([\d,]*)\]', types)
    ]
    found.append((kind, sum(sizes), max(sizes)))
  return found


@pytest.mark.parametrize('mesh', EACH)
def test_communication_is_that_of_the_compiled_step(mesh: str) -> None:
  """Where the CPU's compiler sums and cuts, others scatter the sum: there a scatter is a sum."""
  got, formula = Counter(), Counter()
  for kind, size, _ in collectives(mesh):
    got[kind] += size
  names = {'gather': 'all-gather', 'scatter': 'all-reduce', 'sum': 'all-reduce'}
  for flow in scaling.flows(_config(mesh), axes.parse_mesh(mesh)):
    formula[names.get(flow.kind, 'all-to-all')] += flow.bytes
  assert formula.keys() <= got.keys()
  for kind in got:
    assert got[kind] == pytest.approx(formula[kind], rel=0.05, abs=30_000), (kind, got, formula)
  largest = max(formula.values())
  assert largest > 10 * 30_000  # so that what is left out is a small part


@pytest.mark.parametrize('mesh', [m for m in EACH if 'fsdp' in m.values[0]])
def test_fsdp_moves_no_activation_and_never_more_than_a_layer(mesh: str) -> None:
  config = _config(mesh)
  found = collectives(mesh)
  assert not any(kind == 'all-to-all' for kind, *_ in found)
  layer = sum(
    4 * prod(shape[1:]) for path, shape in count.shapes(config).items() if axes.stacked(path)
  )
  gathered = [largest for kind, _, largest in found if kind == 'all-gather']
  assert gathered and max(gathered) <= layer
  assert max(gathered) >= 4 * 64 * 192 / axes.parse_mesh(mesh).get('tensor', 1)


@pytest.mark.parametrize('mesh', ['fsdp:8', 'data:2,fsdp:2,tensor:2', 'data:2,expert:4'])
def test_state_is_what_a_device_holds(mesh: str) -> None:
  config = _config(mesh)
  state = Program(config).init(config)
  device = jax.devices()[0]
  held = sum(
    shard.data.nbytes
    for leaf in jax.tree.leaves((state.params, state.opt_state))
    for shard in leaf.addressable_shards
    if shard.device == device
  )
  assert scaling.state_bytes(config, axes.parse_mesh(mesh)) * 3 / 4 == pytest.approx(held, rel=0.01)


def test_by_hand() -> None:
  """One layer of D = 64, N·H = 64, F = 192, V = 128: 4·64² + 3·64·192 = 53,248 weights."""
  config = battery.tiny(**SHAPE | {'model.num_layers': 1})
  mesh = {'fsdp': 8}
  flows = {(f.what, f.kind): f for f in scaling.flows(config, mesh)}
  table, norms = 128 * 64, 3 * 64
  gathered = 4 * (2 * (53_248 + norms) + table)
  assert flows['weights', 'gather'].bytes == gathered
  assert flows['weights', 'gather'].sent(mesh) == gathered * 7 / 8
  assert flows['gradients', 'scatter'].bytes == 4 * (53_248 + norms + 2 * table)
  assert len(flows) == 2
  (sums,) = scaling.flows(config, {'tensor': 2})
  # forward 2, backward 3 of attention and 2 of SwiGLU; the look-up and the logits one each
  assert sums.bytes == (7 + 2) * 16 * 8 * 2 * 64 * 4
  assert sums.sent({'tensor': 2}) == sums.bytes


def test_activations_shrink_with_the_mesh() -> None:
  config = battery.tiny(**SHAPE)
  whole = scaling.activation_bytes(config, {})
  assert scaling.activation_bytes(config, {'data': 4, 'fsdp': 2}) == whole / 8
  assert whole / 2 < scaling.activation_bytes(config, {'tensor': 2}) < whole
  cut = config.replace(**{'train.accumulate': 4})
  assert scaling.activation_bytes(cut, {}) == whole / 4
  deep = config.replace(**{'model.num_layers': 20})
  again = deep.replace(**{'model.remat': 'full'})
  assert scaling.activation_bytes(again, {}) < 0.3 * scaling.activation_bytes(deep, {})


def test_every_size_has_a_mesh_on_both_machines() -> None:
  lines = scaling.table().splitlines()
  assert len(lines) == 2 + len(scaling.SHAPES) * len(scaling.MACHINES)
  assert 'none fits' not in scaling.table()
  for billions in scaling.SHAPES:
    assert count.params(scaling.decoder(billions)) == pytest.approx(1e9 * billions, rel=0.06)


def test_what_does_not_fit() -> None:
  assert scaling.best(scaling.decoder(100), scaling.MACHINES[1], 8) is None
