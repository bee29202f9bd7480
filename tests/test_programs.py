"""Compiled programs are kept for the next process, whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from transformer import programs

COMPILE = """
import jax, sys
from jax import monitoring
from transformer import programs
found = []
monitoring.register_event_listener(lambda name, **_: found.append(name))
programs._WORTH = 0.0
print(programs.keep(''))
programs.keep('')
jax.jit(lambda x: x * 2 + 1)(3.0)
print(sum(name == '/jax/compilation_cache/cache_hits' for name in found))
"""


def fresh(cache: Path, code: str = COMPILE, **env: str) -> tuple[str, int]:
  """(the folder that a fresh process keeps programs in, how many it found there)."""
  ours = {k: v for k, v in os.environ.items() if not k.startswith('JAX_')}
  ours |= {'ISOFFN_CACHE': str(cache), 'JAX_PLATFORMS': 'cpu', **env}
  done = subprocess.run([sys.executable, '-c', code], env=ours, capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (0, '')
  folder, hits = done.stdout.split()
  return folder, int(hits)


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
  folder, hits = fresh(tmp_path)
  assert (Path(folder).parent, hits) == (tmp_path / 'programs', 0)
  kept = list(Path(folder).iterdir())
  assert kept and not [path for path in kept if path.suffix == '.tmp']
  before = {path: path.stat().st_mtime_ns for path in kept}
  again, hits = fresh(tmp_path)
  assert again == folder and hits >= 1
  assert any(path.stat().st_mtime_ns > before[path] for path in kept)  # it is in use


def test_a_damaged_program_is_compiled_anew(tmp_path: Path) -> None:
  folder, _ = fresh(tmp_path)
  for path in Path(folder).iterdir():
    path.write_bytes(path.read_bytes()[:100])
  silent = COMPILE.replace(
    'import jax, sys', 'import warnings; warnings.simplefilter("ignore")\nimport jax'
  )
  assert fresh(tmp_path, silent)[1] == 0
  assert fresh(tmp_path)[1] >= 1  # and what was damaged has been replaced


def test_what_the_user_says_goes(tmp_path: Path) -> None:
  own = {'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'own')}
  assert fresh(tmp_path, **own)[0] == 'None'
  assert fresh(tmp_path, JAX_ENABLE_COMPILATION_CACHE='0')[0] == 'None'
  assert not (tmp_path / 'programs').exists()


def test_a_disk_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
  (tmp_path / 'file').write_text('')
  assert fresh(tmp_path / 'file')[0] == 'None'


def test_what_nobody_used_for_a_month_goes(tmp_path: Path) -> None:
  old, new = tmp_path / 'old-cache', tmp_path / 'new-cache'
  for path in (old, new):
    path.write_bytes(b'x')
  month_ago = time.time() - 31 * 86400
  os.utime(old, (month_ago, month_ago))
  programs._drop_unused(tmp_path)
  assert (old.exists(), new.exists()) == (False, True)


def test_tests_keep_programs_elsewhere() -> None:
  if not jax.config.jax_compilation_cache_dir:
    pytest.skip('the fixture `caches` names no folder')
  assert programs.keep('') is None
