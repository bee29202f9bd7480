"""Imports go down only, files stay short, and L0 answers without jax."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
  path.relative_to(ROOT)
  for room in ('transformer', 'experiments', 'launch', 'tests')
  for path in (ROOT / room).rglob('*.py')
)
# The first part of a name below `transformer.` -> layer; whatever is not listed is L3, the host.
LAYERS = {
  **dict.fromkeys(
    (
      'errors',
      'spec',
      'axes',
      'config',
      'count',
      'files',
      'flags',
      'hardware',
      'matching',
      'memory',
      'parametrization',
      'plugin',
      'runs',
      'scaling',
      'tensors',
    ),
    0,
  ),
  **dict.fromkeys(
    (
      *(
        'activations',
        'layers',
        'positions',
        'attention',
        'ffn',
        'params',
        'block',
        'model',
        'stacks',
        'ops',
      ),
      *('moe', 'routers', 'dispatch'),
    ),
    1,
  ),
  **dict.fromkeys(
    (
      'health',
      'loss',
      'objective',
      'optimizer',
      'schedules',
      'state',
      'step',
      'parallel',
    ),
    2,
  ),
}
HOST, LAUNCH, EXPERIMENTS, TESTS = 3, 3, 4, 5


def module(path: Path) -> str:
  return '.'.join(path.with_suffix('').parts).removesuffix('.__init__')


def layer(name: str) -> int | None:
  """The layer of a module of ours by its dotted name; None for other people's."""
  room, _, rest = name.partition('.')
  if room == 'transformer':
    return LAYERS.get(rest.partition('.')[0], HOST) if rest else 0
  return {'launch': LAUNCH, 'experiments': EXPERIMENTS, 'tests': TESTS}.get(room)


def imports(path: Path, everywhere: bool = True) -> set[str]:
  """Dotted names that a file imports; `everywhere` includes what functions import."""
  tree = ast.parse((ROOT / path).read_text())
  return {name for node in _statements(tree, everywhere) for name in _names(node)}


def _statements(tree: ast.AST, everywhere: bool):
  for node in ast.iter_child_nodes(tree):
    if isinstance(node, (ast.Import, ast.ImportFrom)):
      yield node
    elif isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test):
      continue
    elif everywhere or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      yield from _statements(node, everywhere)


def _names(node: ast.Import | ast.ImportFrom) -> list[str]:
  if isinstance(node, ast.Import):
    return [a.name for a in node.names]
  assert node.level == 0, 'imports are absolute'
  inside = [f'{node.module}.{a.name}' for a in node.names]
  return [name if layer(name) is not None else node.module for name in inside]


@pytest.mark.parametrize('path', [p for p in FILES if p.parts[0] != 'tests'], ids=str)
def test_imports_go_down(path):
  own = layer(module(path))
  for name in imports(path):
    if layer(name) is not None:
      assert layer(name) <= own, f'{path} (L{own}) imports {name} (L{layer(name)})'
    if own == 0 or path.parts[0] == 'launch':
      assert name.partition('.')[0] not in ('jax', 'flax', 'optax', 'orbax'), f'{path}: {name}'


@pytest.mark.parametrize('path', [p for p in FILES if p.parts[0] == 'launch'], ids=str)
def test_launch_is_light(path):
  """Of the library it knows L0 and where code comes from; the trainer only inside functions."""
  allowed = {f'transformer.provenance.{name}' for name in ('code_digest', 'library_digest')}
  for name in imports(path, everywhere=False):
    if name.startswith('transformer') and layer(name) > 0:
      assert name in allowed, f'{path} imports {name}'
    assert not name.startswith('experiments'), f'{path} imports {name}'


def test_the_library_knows_no_launcher():
  for path in (p for p in FILES if p.parts[0] == 'transformer'):
    for name in imports(path):
      assert name.partition('.')[0] not in ('launch', 'experiments', 'tests'), f'{path}: {name}'


HEAVY = ('jax', 'flax', 'optax', 'orbax', 'matplotlib', 'scipy', 'grain', 'tensorflow')
LIGHT = 'launch.local, launch.worker, transformer.config, transformer.count, transformer.flags'


@pytest.mark.parametrize('script', [p.stem for p in FILES if p.parts[0] == 'experiments'])
def test_light_imports_leave_jax_out(script):
  """One process a script: each defines its flags when it is imported."""
  name = 'experiments' if script == '__init__' else f'experiments.{script}'
  code = f'import sys, {name}, {LIGHT}\nprint([m for m in {HEAVY} if m in sys.modules])'
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  assert (done.stdout, done.stderr) == ('[]\n', '')


def test_data_and_analysis_leave_jax_out():
  for path in FILES:
    if path.parts[:2] in (('transformer', 'data'), ('transformer', 'analysis')):
      for name in imports(path):
        assert name.partition('.')[0] not in ('jax', 'flax', 'optax', 'orbax'), f'{path}: {name}'
        assert layer(name) in (None, 0, HOST), f'{path}: {name}'


@pytest.mark.parametrize('path', FILES, ids=str)
def test_no_file_is_long(path):
  assert len((ROOT / path).read_text().splitlines()) <= 400


def test_only_parallel_says_pmap_or_mesh():
  """In code: names, attributes and imports; words in comments and help are free."""
  for path in (p for p in FILES if p.parts[0] in ('transformer', 'launch', 'experiments')):
    if path == Path('transformer/parallel.py'):
      continue
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
      said = getattr(node, 'id', getattr(node, 'attr', getattr(node, 'name', '')))
      assert said not in ('pmap', 'Mesh', 'shard_map', 'NamedSharding'), f'{path}: {said}'


def test_every_matrix_product_goes_through_ops():
  """Outside ops/, L1 calls no einsum, dot or matmul, and no layers of flax that would."""
  forbidden = ('einsum', 'dot', 'matmul', 'dot_general', 'tensordot', 'Dense', 'DenseGeneral')
  for path in (p for p in FILES if p.parts[0] == 'transformer' and layer(module(p)) in (1, 2)):
    if 'ops' in path.parts:
      continue
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
      assert getattr(node, 'attr', '') not in forbidden, f'{path}: {ast.unparse(node)}'
      assert not isinstance(getattr(node, 'op', None), ast.MatMult), f'{path}: {ast.unparse(node)}'


def test_nothing_that_is_read_can_run_code():
  """No pickle of any kind, and every np.load says so."""
  pickles = ('pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'marshal', 'shelve', 'torch')
  loads = 0
  for path in (p for p in FILES if p.parts[0] in ('transformer', 'launch', 'experiments')):
    for name in imports(path):
      assert name.partition('.')[0] not in pickles, f'{path}: {name}'
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
      if isinstance(node, ast.Call) and ast.unparse(node.func) in ('np.load', 'numpy.load'):
        said = {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert said.get('allow_pickle') == 'False', f'{path}: {ast.unparse(node)}'
        loads += 1
  assert loads >= 2
