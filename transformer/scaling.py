"""Memory and communication of a training step on each device of a mesh, by formula.

  python -m transformer.scaling     the table of docs/scaling.md: what mesh for 1 B to 100 B

Plain arithmetic on a resolved config, without jax; docs/scaling.md has the formulas and what they
leave out, and tests/test_scaling.py holds them against compiled programs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from transformer import axes, count, memory, spec, tensors
from transformer.config import Config, resolve, routing

_ROWS = ('data', 'fsdp', 'expert')  # axes that share out the batch


@dataclass(frozen=True)
class Flow:
  """What a device gives and gets in a step. bytes: of the array it has at the end, or the start.

  kind: gather (of shares), scatter (a sum that each has a share of), sum (that all have), exchange
  (all-to-all). axes: of the mesh, over which it goes.
  """

  what: str
  kind: str
  axes: tuple[str, ...]
  bytes: int

  def sent(self, mesh: dict[str, int]) -> float:
    """Bytes that a device sends, and receives, where it goes round in a ring."""
    n = prod(mesh[axis] for axis in self.axes)
    return (2 if self.kind == 'sum' else 1) * self.bytes * (n - 1) / n


def flows(config: Config, mesh: dict[str, int]) -> list[Flow]:
  """The communication of a training step on each device; what is of the order of tokens left out.

  Weights and gradients go as float32. accumulate: gathers and exchanges are made in each
  micro-batch, and XLA sums gradients in each as well.
  """
  found = [*_of_parameters(config, mesh), *_of_activations(config, mesh)]
  times = config.train.accumulate
  merged: dict[tuple, int] = {}
  for flow in found:
    if prod(mesh.get(axis, 1) for axis in flow.axes) > 1:
      own = tuple(axis for axis in flow.axes if mesh.get(axis, 1) > 1)
      key = (flow.what, flow.kind, own)
      merged[key] = merged.get(key, 0) + times * flow.bytes
  return [Flow(*key, n) for key, n in merged.items()]


def _of_parameters(config: Config, mesh: dict[str, int]) -> Iterator[Flow]:
  """fsdp: gathered forward and backward. Gradients: summed over all that share out the batch."""
  for path, shape in count.shapes(config).items():
    used = {a for taken in _parts(path, shape, mesh) for a in taken or ()}
    whole = 4 * prod(shape) // prod(mesh[a] for a in used - {'fsdp'})
    # One table is gathered once for the look-up and the logits; of these each has a gradient.
    looked_up = path.endswith('embed/table')
    tied = path == 'embed/table' and config.model.tied
    if 'fsdp' in used:
      yield Flow('weights', 'gather', ('fsdp',), whole * (1 if looked_up else 2))
      yield Flow('gradients', 'scatter', ('fsdp',), whole * (1 + tied))
    left = tuple(a for a in _ROWS if a not in used)
    share = whole // (mesh['fsdp'] if 'fsdp' in used else 1)
    yield Flow('gradients', 'sum', left, share * (1 + tied))


def _of_activations(config: Config, mesh: dict[str, int]) -> Iterator[Flow]:
  """tensor: sums of the stream behind each product over heads or hidden units. expert: rows.

  A sum forward for each branch, and backward for each matrix that the branch reads the stream by.
  """
  c, size = config, count.sizes(config)
  rows = size['B'] // c.train.accumulate // prod(mesh.get(axis, 1) for axis in _ROWS)
  item = 4 if c.model.dtype == 'float32' else 2
  stream = rows * size['T'] * c.model.d_model * item
  heads, units = (mesh.get('tensor', 1) > 1 and size[k] % mesh['tensor'] == 0 for k in 'NF')
  for group in count.groups(c):
    ins = len(spec.parse('ffn.activation', count.activation(c, group.stack)).inputs)
    sums = (4 if c.model.num_heads and heads else 0) + ((1 + ins) if group.d_ff and units else 0)
    yield Flow('activations', 'sum', ('tensor',), group.size * sums * stream)
    if group.experts and routing.dispatch(c).variant == 'expert_parallel':
      length = routing.group_length(c, size['T'])
      places = group.experts * routing.capacity(c, length, training=True)
      moved = rows * size['T'] // length * places * c.model.d_model * item
      yield Flow('rows of experts', 'exchange', ('expert',), group.size * 4 * moved)
  if mesh.get('tensor', 1) > 1 and size['V'] % mesh['tensor'] == 0:  # the look-up, and the logits
    yield Flow('activations', 'sum', ('tensor',), 2 * stream)


def _parts(path: str, shape: tuple[int, ...], mesh: dict[str, int]) -> tuple:
  return axes.partition(axes.letters(path), shape, mesh, parameter=True)


def state_bytes(config: Config, mesh: dict[str, int]) -> float:
  """Bytes a device holds from step to step, and of the gradient: parameters lie as the axes say."""
  total = sum(memory.state(config).values())
  held = sum(
    prod(shape) / prod(mesh[a] for taken in _parts(path, shape, mesh) for a in taken or ())
    for path, shape in count.shapes(config).items()
  )
  return total * held / count.params(config)


def activation_bytes(config: Config, mesh: dict[str, int]) -> float:
  """Bytes of activations that a device keeps for the backward pass of a micro-batch.

  With attention in blocks, which keeps no scores. --model.remat=dots counts as none.
  """

  def share(tensor: tensors.Tensor) -> float:
    letters = tensor.name.rpartition('_')[2]
    parts = axes.partition(letters, tensor.shape, mesh, parameter=False)
    return tensor.bytes / prod(mesh[a] for taken in parts for a in taken or ())

  once, every = [], 0.0
  for part in tensors.forward(config):
    kept = sum(share(t) for t in part.tensors if t.kept and not _fused(t))
    if config.model.remat == 'full' and 'layer' in part.name:
      once.append(kept)  # made again, one branch at a time, from the stream that enters it
      stream = next(t for t in part.tensors if t.name.endswith('_BTD'))
      kept = share(stream)
    every += part.times * kept
  return every + max(once, default=0.0)


def _fused(tensor: tensors.Tensor) -> bool:
  """Whether attention in blocks makes it anew for the backward pass: a number a query and key."""
  return {'T', 'S'} <= set(tensor.name.rpartition('_')[2])


# --- What mesh to choose.


@dataclass(frozen=True)
class Machine:
  """near: devices joined by the fast network; near_rate, far_rate: bytes/s out of a device."""

  name: str
  memory: float
  flops: float  # a second, bfloat16, dense
  near: int
  near_rate: float
  far_rate: float


MACHINES = (
  # NVLink's 900 GB/s and the network's 400 Gb/s a GPU: half of the first goes each way.
  Machine('H200', 141e9, 990e12, 8, 450e9, 50e9),
  # 600 GB/s over six links of a torus, both ways together: an axis has a third, half each way.
  Machine('v5p', 95e9, 459e12, 8192, 100e9, 100e9),
)
SHAPES = {  # billions of parameters -> d_model, layers, heads, key/value heads, devices
  1: (2048, 16, 16, 8, 16),
  3: (3072, 22, 24, 8, 32),
  7: (4096, 31, 32, 8, 64),
  13: (5120, 38, 40, 8, 128),
  34: (7168, 51, 56, 8, 256),
  70: (8192, 81, 64, 8, 512),
  100: (9216, 92, 72, 8, 512),
}
_TOKENS, _LENGTH = 2**22, 4096  # of a batch, of a sequence
_FULL, _REACHED = 0.85, 0.6  # share of memory that is used, of peak FLOP/s that products reach


def decoder(billions: int) -> Config:
  """A decoder of this size: SwiGLU of ratio 3.5, grouped heads of 128, 32,768 tokens."""
  width, layers, heads, kv_heads, _ = SHAPES[billions]
  return resolve(
    Config().replace(
      **{
        'model.d_model': width,
        'model.num_layers': layers,
        'model.num_heads': heads,
        'model.num_kv_heads': kv_heads,
        'model.vocab_size': 32_768,
        'model.dtype': 'bfloat16',
        'model.tied': False,
        'ffn.activation': 'swiglu',
        'ffn.ratio': 3.5,
        'ffn.multiple_of': 256,
        'data.source': 'synthetic',
        'data.seq_len': _LENGTH,
        'data.batch_size': _TOKENS // _LENGTH,
      }
    )
  )


@dataclass(frozen=True)
class Plan:
  """A mesh, what else is needed to fit, and what a step costs. compute, wire: seconds."""

  mesh: dict[str, int]
  accumulate: int
  remat: str
  memory: float
  compute: float
  wire: float

  @property
  def mfu(self) -> float:
    """Share of peak where nothing of the communication hides behind products."""
    useful = 0.75 if self.remat == 'full' else 1.0  # the forward pass again counts for nothing
    return useful * _REACHED * self.compute / (self.compute + self.wire)


def best(config: Config, machine: Machine, devices: int) -> Plan | None:
  """The plan of least time that fits; None if none does."""
  ways = itertools.product(_meshes(config, devices), ('none', 'full'))
  found = (_plan(config, machine, mesh, remat) for mesh, remat in ways)
  return min(filter(None, found), key=lambda plan: plan.compute + plan.wire, default=None)


def _meshes(config: Config, devices: int) -> Iterator[dict[str, int]]:
  powers = [2**i for i in range(devices.bit_length())]
  for fsdp, tensor in itertools.product(powers, (1, 2, 4, 8)):
    data = devices // (fsdp * tensor)
    if data and config.data.batch_size % (data * fsdp) == 0:
      yield {'data': data, 'fsdp': fsdp, 'tensor': tensor}


def _plan(config: Config, machine: Machine, mesh: dict[str, int], remat: str) -> Plan | None:
  rows = config.data.batch_size // (mesh['data'] * mesh['fsdp'])
  held = state_bytes(config, mesh)
  for parts in (2**i for i in range(rows.bit_length())):
    cut = config.replace(**{'train.accumulate': parts, 'model.remat': remat})
    total = held + 2 * activation_bytes(cut, mesh)  # JAX keeps up to twice the least
    if total <= _FULL * machine.memory:
      break
  else:
    return None
  again = 4 / 3 if remat == 'full' else 1.0
  flops = again * count.flops_per_token(config) * _TOKENS / prod(mesh.values())
  wire = sum(f.sent(mesh) / _rate(machine, mesh, f.axes) for f in flows(cut, mesh))
  return Plan(mesh, parts, remat, total, flops / (_REACHED * machine.flops), wire)


def _rate(machine: Machine, mesh: dict[str, int], over: tuple[str, ...]) -> float:
  """Bytes/s: those of the fast network if all devices of the axis, and inside it, are near."""
  names = list(mesh)
  reach = prod(mesh[name] for name in names[names.index(over[0]) :])
  return machine.near_rate if reach <= machine.near else machine.far_rate


def table() -> str:
  """The table of docs/scaling.md."""
  lines = [
    '| parameters | machine | devices | mesh | micro-batches | remat | GB a device | compute, s | '
    'communication, s | MFU at least |',
    '|---:|---|---:|---|---:|---|---:|---:|---:|---:|',
  ]
  for (billions, shape), machine in itertools.product(SHAPES.items(), MACHINES):
    config = decoder(billions)
    plan = best(config, machine, shape[-1])
    told = f'| {count.params(config) / 1e9:.1f} B | {machine.name} | {shape[-1]} |'
    if plan is None:
      lines.append(f'{told} none fits | | | | | | |')
      continue
    mesh = ','.join(f'{name}:{n}' for name, n in plan.mesh.items() if n > 1)
    lines.append(
      f'{told} `{mesh}` | {plan.accumulate} | {plan.remat} | {plan.memory / 1e9:.0f} | '
      f'{plan.compute:.2f} | {plan.wire:.2f} | {plan.mfu:.0%} |'
    )
  return '\n'.join(lines)


if __name__ == '__main__':
  print(table())
