"""The commands that scripts' own help shows, as far as --dry_run tells whether they would run."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from tests.processes import ROOT, start

_COMMAND = r"^ *python -m experiments\.(\w+)((?: --[\w.]+(?:=(?:'[^']*'|\S+))?)*)"


def examples(script: Path) -> list[list[str]]:
  """Flags of the commands of a script's docstring that run itself."""
  told = ast.get_docstring(ast.parse(script.read_text())) or ''
  found = re.findall(_COMMAND, told, re.MULTILINE)
  return [shlex.split(given) for name, given in found if name == script.stem]


SCRIPTS = [
  path
  for path in sorted((ROOT / 'experiments').glob('*.py'))
  if re.search(r'^(lab|paired)\.define_flags', path.read_text(), re.MULTILINE)
]


@pytest.mark.parametrize('script', [path.stem for path in SCRIPTS])
def test_every_example_is_a_plan(script: str) -> None:
  found = examples(ROOT / f'experiments/{script}.py')
  assert len(found) > 1
  running = [start(f'experiments.{script}', *args, '--dry_run') for args in found]
  for args, process in zip(found, running, strict=True):
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, ''), args
    assert out.rstrip().endswith('; nothing was run')
