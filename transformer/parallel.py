"""The one file that knows about pmap and meshes.

A step is a pure function (state, batch, reduce); an executor decides where its arrays live and
what `reduce` is. Results agree between executors up to the order of sums.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from transformer import axes, count
from transformer.config import Config
from transformer.errors import UserError
from transformer.params import path_of

Tree = Any


def make(config: Config) -> MeshParallel | PmapParallel:
  """The executor of a resolved config on the devices at hand.

  Raises UserError if the mesh does not fit the devices, or the devices do not divide the batch.
  """
  mode, devices = config.parallel.mode, jax.devices()
  mesh = axes.parse_mesh(config.parallel.mesh)
  several = len(devices) > 1 and jax.process_count() == 1
  if mode == 'auto' and not mesh and several and devices[0].platform == 'cpu':
    mode = 'pmap'  # on a device of its own each core takes the ways that only lone CPUs have
  mesh = mesh or {'data': len(devices)}
  if prod(mesh.values()) > len(devices):
    raise UserError(
      f'--parallel.mesh={config.parallel.mesh}: needs {prod(mesh.values())} devices, '
      f'{len(devices)} present'
    )
  rows = config.data.batch_size // config.train.accumulate
  shares = len(devices) if mode == 'pmap' else _shares(mesh)
  if rows % shares:
    raise UserError(
      f'--data.batch_size={config.data.batch_size}: {rows} sequences a micro-batch '
      f'(--train.accumulate={config.train.accumulate}) are not divisible by {shares} devices'
    )
  if mode == 'pmap':
    if jax.process_count() > 1:
      raise UserError('--parallel.mode=pmap: is for one process; of several the mode is mesh')
    return PmapParallel(devices)
  if jax.process_count() > 1 and prod(mesh.values()) < len(devices):
    raise UserError(
      f'--parallel.mesh={config.parallel.mesh}: uses {prod(mesh.values())} of {len(devices)} '
      'devices; of several processes it has to use all'
    )
  return MeshParallel(mesh, count.shapes(config), config.data.batch_size)


def _shares(mesh: dict[str, int]) -> int:
  """Devices that a batch is shared out over."""
  return prod(mesh.get(axis, 1) for axis in axes.LETTERS['B'].activation)


def _settle(out: Tree, devices: list[jax.Device]) -> Tree:
  """Waits for `out` where XLA's collectives need it.

  Several CPU devices share one pool of threads: with a second step in flight, devices that wait
  in its sum can keep the others from finishing the first, and XLA aborts the process.
  """
  if len(devices) > 1 and devices[0].platform == 'cpu':
    return jax.block_until_ready(out)
  return out


def _rarely(devices: list[jax.Device]) -> dict | None:
  """Options for a program that costs more to compile than to run: on CPU, not to optimize it."""
  return {'xla_backend_optimization_level': 0} if devices[0].platform == 'cpu' else None


@functools.cache
def _any_process() -> tuple[NamedSharding, Callable]:
  mesh = Mesh(np.array(jax.devices()), ('devices',))
  split, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (('devices',), ()))
  return split, jax.jit(lambda flags: flags.any(), out_shardings=whole)


def any_process(flag: bool) -> jax.Array:
  """Whether any process says so; an array that can be read once all have called."""
  split, function = _any_process()
  shape = (len(split.device_set),)
  flags = jax.make_array_from_callback(shape, split, lambda _: np.array([flag]))
  return _settle(function(flags), jax.devices())


def whole(tree: Tree) -> Tree:
  """A tree of arrays on this host, NumPy's; of several processes all have to call."""
  from jax.experimental import multihost_utils

  def one(x: Any) -> np.ndarray:
    shared_out = isinstance(x, jax.Array) and not x.is_fully_addressable
    if shared_out and not x.is_fully_replicated:
      return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)

  return jax.tree.map(one, tree)


class MeshParallel:
  """jit over a mesh: arrays laid out by the letter table, communication by the compiler.

  mesh: axis -> size. parameters: path -> shape of the model's. batch: rows of a whole one.
  """

  def __init__(self, mesh: dict[str, int], parameters: dict[str, tuple[int, ...]], batch: int):
    devices = np.array(jax.devices()[: prod(mesh.values())]).reshape(tuple(mesh.values()))
    self._axes, self._parameters, self.devices = mesh, parameters, list(devices.flat)
    self.shares = _shares(mesh)
    self._mesh = Mesh(devices, tuple(mesh), axis_types=(AxisType.Auto,) * len(mesh))
    self._state_sharding: Tree = None
    self._batch = batch
    self.part = self._part()

  def compile_init(self, create: Callable[..., Tree]) -> Callable[..., Tree]:
    """`create`, its result laid out as the executor keeps states."""

    compiled: Callable[..., Tree] | None = None

    def call(*args: Tree) -> Tree:
      nonlocal compiled
      if compiled is None:
        self._state_sharding = jax.tree.map(lambda x: x.sharding, self.shapes(create, *args))
        compiled = self._jit(create, out_shardings=self._state_sharding)
      return compiled(*args)

    return call

  def shapes(self, create: Callable[..., Tree], *args: Tree) -> Tree:
    """What `compile_init` would make, as shapes with their layout; nothing is computed."""

    def laid_out(key_path: tuple, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._sharding_of(key_path, x))

    return jax.tree_util.tree_map_with_path(laid_out, jax.eval_shape(create, *args))

  def compile(self, step: Callable) -> Callable[[Tree, Tree], Tree]:
    """(state, batch) -> (state, metrics), the old state's memory being given up.

    Its `lower` is that of jax.jit and jax.pmap, for arrays or their shapes.
    """

    def train_step(state: Tree, batch: Tree) -> tuple[Tree, Tree]:
      state, metrics = step(state, batch, lambda x: x)
      return state, self._everywhere(metrics)

    return self._jit(train_step, donate_argnums=0)

  def compile_eval(self, step: Callable) -> Callable[[Tree, Tree], Tree]:
    """(params, batch) -> sums. `lower` as that of `compile`."""

    def eval_step(params: Tree, batch: Tree) -> Tree:
      return self._everywhere(step(params, batch, lambda x: x))

    return self._jit(eval_step)

  def compile_whole(self, function: Callable[[Tree, Tree], Tree]) -> Callable[[Tree, Tree], Tree]:
    """(state or parameters, host batch) -> anything; for what runs rarely, on whole arrays."""
    compiled = self._jit(
      lambda *args: self._everywhere(function(*args)), compiler_options=_rarely(self.devices)
    )
    return lambda tree, batch: compiled(tree, self.put(batch))

  def put(self, batch: dict[str, np.ndarray]) -> Tree:
    """A whole host batch on the devices, rows shared out; every process gives the same."""
    return jax.tree.map(lambda x: self._put(x, len(x)), batch)

  def put_part(self, batch: dict[str, np.ndarray]) -> Tree:
    """A batch on the devices of which each process gives its `part`."""
    return jax.tree.map(lambda x: self._put(x, self._batch), batch)

  def place(self, host_state: Tree) -> Tree:
    """A host state (as from `fetch`) back on the devices."""

    def one(x: Any, sharding: NamedSharding) -> jax.Array:
      if isinstance(x, jax.Array) or sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
      return jax.make_array_from_callback(np.shape(x), sharding, lambda index: np.asarray(x)[index])

    return jax.tree.map(one, host_state, self._state_sharding)

  def fetch(self, state: Tree) -> Tree:
    """The state as it is saved: global arrays."""
    return state

  def _jit(self, function: Callable, **options: Any) -> Callable:
    compiled = jax.jit(function, **options)

    def call(*args: Tree) -> Tree:
      with jax.set_mesh(self._mesh):
        return _settle(compiled(*args), self.devices)

    def lower(*args: Tree) -> jax.stages.Lowered:
      with jax.set_mesh(self._mesh):
        return compiled.lower(*args)

    call.lower = lower
    return call

  def _everywhere(self, tree: Tree) -> Tree:
    """With a copy on every device, so that every process can read it."""
    sharding = NamedSharding(self._mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding), tree)

  def _put(self, x: np.ndarray, rows: int) -> jax.Array:
    shape = (rows, *x.shape[1:])
    return jax.make_array_from_process_local_data(self._batch_sharding(rows), x, shape)

  def _batch_sharding(self, rows: int) -> NamedSharding:
    spec = axes.partition('B', (rows,), self._axes, parameter=False)
    return NamedSharding(self._mesh, PartitionSpec(*spec))

  def _part(self) -> tuple[int, int]:
    """(r, n): this process's devices hold part r of n of a batch; (0, 1): of all of it."""
    shape = (self._batch,)
    mine = self._batch_sharding(self._batch).addressable_devices_indices_map(shape).values()
    spans = sorted({rows.indices(self._batch)[:2] for (rows,) in mine})
    first, last = spans[0][0], spans[-1][1]
    size = last - first
    gaps = sum(b - a for a, b in spans) < size
    if gaps or self._batch % size or first % size:  # rows here and there: each reads all of them
      return 0, 1
    return first // size, self._batch // size

  def _sharding_of(self, key_path: tuple, x: jax.ShapeDtypeStruct) -> NamedSharding:
    """By the table if the leaf is a parameter or a moment of its shape, else replicated."""
    names, spec = path_of(key_path).split('/'), ()
    for i in range(len(names)):  # .params/embed/table and .opt_state/…/mu/embed/table alike
      if self._parameters.get(path := '/'.join(names[i:])) == x.shape:
        spec = axes.partition(axes.letters(path), x.shape, self._axes, parameter=True)
    return NamedSharding(self._mesh, PartitionSpec(*spec))


class PmapParallel:
  """pmap: a replica of the state a device, a share of the rows each, sums by psum."""

  def __init__(self, devices: list[jax.Device]):
    self.devices, self.shares, self.part = devices, len(devices), (0, 1)
    self._sharding = NamedSharding(Mesh(np.array(devices), ('devices',)), PartitionSpec('devices'))

  def compile_init(self, create: Callable[..., Tree]) -> Callable[..., Tree]:
    """`create`, its result replicated."""
    compiled = jax.jit(create)
    return lambda *args: self.place(compiled(*args))

  def shapes(self, create: Callable[..., Tree], *args: Tree) -> Tree:
    """What `compile_init` would make, as shapes; nothing is computed."""
    n = len(self.devices)

    def replicated(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
      return jax.ShapeDtypeStruct((n, *x.shape), x.dtype)

    return jax.tree.map(replicated, jax.eval_shape(create, *args))

  def compile(self, step: Callable) -> Callable[[Tree, Tree], Tree]:
    """(state, batch) -> (state, metrics), the old state's memory being given up.

    Its `lower` is that of jax.jit and jax.pmap, for arrays or their shapes.
    """
    return self._pmap(step, donate=True)

  def compile_eval(self, step: Callable) -> Callable[[Tree, Tree], Tree]:
    """(params, batch) -> sums. `lower` as that of `compile`."""
    return self._pmap(step, donate=False)

  def compile_whole(self, function: Callable[[Tree, Tree], Tree]) -> Callable[[Tree, Tree], Tree]:
    """(state or parameters, host batch) -> anything; for what runs rarely, on whole arrays."""
    compiled = jax.jit(function, compiler_options=_rarely(self.devices))
    return lambda tree, batch: compiled(self.fetch(tree), batch)

  def put(self, batch: dict[str, np.ndarray]) -> Tree:
    """A host batch cut into a share a device."""
    n = len(self.devices)
    return jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), batch)

  put_part = put  # of one process

  def place(self, host_state: Tree) -> Tree:
    """A host state on every device."""
    n = len(self.devices)
    copies = jax.tree.map(lambda x: np.broadcast_to(np.asarray(x), (n, *np.shape(x))), host_state)
    # Laid out as pmap returns it: from arrays of the host the second step would compile again.
    return jax.device_put(copies, self._sharding)

  def fetch(self, state: Tree) -> Tree:
    """The first replica."""
    # Read where it lies: x[0] would be a program of its own a leaf, with communication in it.
    return jax.tree.map(lambda x: x.addressable_data(0)[0], state)

  def _pmap(self, step: Callable, donate: bool) -> Callable:
    def share(state: Tree, batch: Tree) -> Tree:
      return step(state, batch, lambda x: jax.lax.psum(x, 'devices'))

    # Sums are equal on all devices and have no dimension of them; the state keeps a replica each.
    kept = dict(donate_argnums=0, out_axes=(0, None)) if donate else dict(out_axes=None)
    compiled = jax.pmap(share, 'devices', **kept)

    def call(state: Tree, batch: Tree) -> Tree:
      return _settle(compiled(state, batch), self.devices)

    call.lower = compiled.lower
    return call
