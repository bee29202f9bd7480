"""A user's own file, always in a process of its own: what it declares stays declared."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests import processes

LAB = '''
import jax
import jax.numpy as jnp
from transformer.plugin import Param, activation, schedule, source

@activation(sharpness=Param('F', init=2.0, decay=False))
def soft_step(x, sharpness, offset: float = 0.0):
  """x σ(sharpness · (x − offset)), the sharpness of each unit learned."""
  return x * jax.nn.sigmoid(sharpness * (x - offset))

@activation
def swapped(gate, up):
  """tanh(up) ⊙ gate."""
  return jnp.tanh(up) * gate

@schedule
def triangle(step, steps, peak: float = 0.3):
  """Up to the peak, then down to 0."""
  return jnp.minimum((step + 1) / (peak * steps), (steps - step) / ((1 - peak) * steps))

@source
def notes(count: int = 40):
  """Numbers in words."""
  for i in range(count):
    yield f'group {i}', f'note {i} says hello ' * 20
'''
TINY = processes.flags(
  processes.TINY
  | {
    'model.vocab_size': 0,
    'data.tokenizer': 'byte',
    'data.source': 'notes(count=30)',
    'ffn.activation': 'soft_step(offset=0.5)',
    'optim.schedule': 'triangle(peak=0.5)',
    'train.steps': 4,
    'train.log_every': 1,
  }
)


@pytest.fixture
def lab(tmp_path):
  path = tmp_path / 'my_lab.py'
  path.write_text(LAB)
  return path


def python(code: str, *args: object) -> str:
  command = [sys.executable, '-c', code, *map(str, args)]
  done = subprocess.run(command, cwd=processes.ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return done.stdout.strip()


def describe(*args: str) -> subprocess.CompletedProcess:
  return processes.run('experiments.describe', *args)


def test_a_run_with_activation_schedule_and_source_of_ones_own(lab, tmp_path):
  """Through flags, launcher and worker to a report; the rates are the triangle's."""
  workdir = tmp_path / 'run'
  done = processes.run('experiments.train', f'--plugin={lab}', f'--workdir={workdir}', *TINY)
  assert done.returncode == 0, done.stderr
  (folder,) = (workdir / 'cells').iterdir()
  assert 'notes' in processes.read(folder / 'provenance.json')['data']['source']
  rows = processes.rows(folder)
  peak = processes.read(folder / 'config.json')['optim']['learning_rate']
  shares = [r['train/learning_rate'] / peak for r in rows if 'train/learning_rate' in r]
  assert shares == pytest.approx([0.5, 1.0, 1.0, 0.5])
  asked = f'--checkpoint={workdir}', '--prompt=note', '--max_new_tokens=2'
  told = processes.run('experiments.generate', *asked)  # the run itself says where its plugin is
  assert (told.returncode, told.stdout[:4]) == (0, 'note'), told.stderr


def test_a_copy_of_a_file_that_has_run_declares_nothing_twice(lab, tmp_path):
  code = 'import sys; from transformer import plugin; print(plugin.load(",".join(sys.argv[1:])))'
  copy = tmp_path / 'copy.py'
  copy.write_text(LAB)
  assert python(code, lab, copy) == f'{lab},{copy}'
  copy.write_text(LAB + '\n')  # negative control: of another file
  with pytest.raises(AssertionError, match='is declared twice'):
    python(code, lab, copy)


def test_an_edited_file_makes_only_the_cells_that_use_it_stale(lab, tmp_path):
  code = """
import sys
from transformer import plugin
from transformer.config import Config, resolve
from transformer.provenance import code_digest
for activation in ('relu', 'soft_step', 'product(soft_step, identity)'):
  config = Config().replace(**{'plugin': sys.argv[1], 'ffn.activation': activation})
  print(code_digest(resolve(config)))
"""
  edited = tmp_path / 'edited.py'
  edited.write_text(LAB + '\n# one more line\n')
  plain, own, nested = python(code, lab).split()
  assert plain != own == nested
  plain_now, own_now, _ = python(code, edited).split()
  assert plain_now == plain
  assert own_now != own


def test_its_parameters_are_counted_and_its_gate_matched(lab):
  args = f'--plugin={lab}', '--preset=pilot', '--json'
  plain, own = (
    json.loads(describe(*args, f'--ffn.activation={name}').stdout) for name in ('relu', 'soft_step')
  )
  assert own['params'] == plain['params'] + 2 * 384
  gated = json.loads(describe(*args, '--ffn.activation=swapped').stdout)
  assert {t['path'] for t in gated['tensors']} >= {'layers/ffn/gate', 'layers/ffn/up'}


def test_help_lists_it_without_jax(tmp_path):
  """Of a file that does not import jax itself."""
  path = tmp_path / 'light.py'
  path.write_text('from transformer.plugin import activation\n@activation\ndef own(x): return x\n')
  done = describe(f'--plugin={path}', '--help')
  assert '| own' in ' '.join(done.stdout.split())
  code = 'import sys; from transformer import plugin; plugin.load(sys.argv[1]); '
  assert python(code + "print('jax' in sys.modules)", path) == 'False'


@pytest.mark.parametrize(
  ('text', 'error'),
  [
    (None, 'cannot be read (No such file or directory)'),
    ('x = = 1', 'line 1: SyntaxError: invalid syntax'),
    ('\nimport nothing_there', "line 2: ModuleNotFoundError: No module named 'nothing_there'"),
    (
      'from transformer.plugin import activation\n@activation\ndef relu(x): return x',
      'line 2: ValueError: ffn.activation=relu is declared twice',
    ),
    (
      'from transformer.plugin import activation\n@activation\ndef own(x, slope): return x',
      'line 2: TypeError: own(): slope needs a default: a number, bool or text',
    ),
    (
      'from transformer.plugin import Param, activation\n'
      "@activation(slop=Param('F'))\ndef own(x, slope): return x",
      "line 2: TypeError: own() should take an argument 'slop'",
    ),
    (
      'from transformer.plugin import schedule\n'
      "@schedule\ndef own(step, steps, how='up'): return 1.0",
      'line 2: TypeError: own(): how needs a default: a number',
    ),
    (
      'from transformer.plugin import schedule\n@schedule\ndef own(step): return 1.0',
      "line 2: TypeError: own() should take an argument 'steps'",
    ),
  ],
)
def test_a_file_that_cannot_be_used_ends_in_one_line(tmp_path, text, error):
  path = tmp_path / 'lab.py'
  if text is not None:
    path.write_text(text)
  done = describe(f'--plugin={path}')
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr == f'error: --plugin={path}: {error}\n'


def test_an_unknown_variant_of_it_is_answered_with_the_nearest(lab):
  done = describe(f'--plugin={lab}', '--ffn.activation=soft_stp')
  assert done.returncode == 2
  assert done.stderr == (
    "error: --ffn.activation=soft_stp: no variant 'soft_stp'; did you mean soft_step?\n"
  )


@pytest.mark.exhaustive
def test_pytest_runs_the_batteries_on_it_and_nothing_else(lab):
  """A sound activation passes; one whose gradient overflows far out fails."""
  tests = 'tests/test_activations.py', '-p', 'no:cacheprovider'
  done = processes.run('pytest', f'--plugin={lab}', *tests)
  assert done.returncode == 0, done.stdout
  listed = processes.run('pytest', f'--plugin={lab}', '--collect-only', *tests).stdout
  found = [line for line in listed.splitlines() if '::' in line]
  assert len(found) >= 8
  assert all('soft_step' in line or 'swapped' in line for line in found)
  lab.write_text(LAB.replace('jnp.tanh(up) * gate', 'up / (1 + jnp.exp(-gate))'))
  assert processes.run('pytest', f'--plugin={lab}', *tests).returncode == 1
