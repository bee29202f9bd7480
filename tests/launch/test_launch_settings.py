"""Which settings act where, and the page that names them."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from launch_fakes import ROOT

from launch import engines
from transformer.config import SETTINGS
from transformer.errors import UserError


def test_each_setting_acts_somewhere_and_those_of_one_engine_not_on_another() -> None:
  here, slurm, kubernetes = (set(engines.unread(n)) for n in ('local', 'slurm', 'kubernetes'))
  assert not slurm & kubernetes
  assert 'launch.image' in slurm - kubernetes
  assert 'launch.partition' in kubernetes - slurm
  assert slurm | kubernetes < here
  assert {n for n in SETTINGS if n.startswith('launch.')} - here == {
    'launch.workers',
    'launch.retries',
    'launch.together',
  }
  with pytest.raises(UserError, match='--on=slum: no such engine; did you mean slurm'):
    engines.unread('slum')


def test_a_setting_that_changes_nothing_is_named(tmp_path) -> None:
  command = [sys.executable, '-m', 'experiments.train', f'--workdir={tmp_path}', '--dry_run']
  command += ['--launch.partition=gpu', '--launch.workers=1']
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (0, '--launch.partition: changes nothing on local\n')


def test_every_setting_that_the_page_names_exists_and_all_of_clusters_are_there() -> None:
  page = (ROOT / 'docs' / 'launch.md').read_text()
  named = set(re.findall(r'--(launch\.\w+)', page))
  assert named <= SETTINGS.keys()
  assert {name for name in SETTINGS if name.startswith('launch.')} - named <= {'launch.qos'}
  for module in re.findall(r'python -m ([\w.]+)', page):
    assert (ROOT / f'{module.replace(".", "/")}.py').exists(), module
