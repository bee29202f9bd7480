"""The page on launching names flags that exist."""

from __future__ import annotations

import re

from launch_fakes import ROOT

from transformer.config import SETTINGS


def test_every_setting_that_the_page_names_exists_and_all_of_clusters_are_there() -> None:
  page = (ROOT / 'docs' / 'launch.md').read_text()
  named = set(re.findall(r'--(launch\.\w+)', page))
  assert named <= SETTINGS.keys()
  assert {name for name in SETTINGS if name.startswith('launch.')} - named <= {'launch.qos'}
  for module in re.findall(r'python -m ([\w.]+)', page):
    assert (ROOT / f'{module.replace(".", "/")}.py').exists(), module
