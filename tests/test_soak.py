"""The short form of tests/soak.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import soak


def test_a_sweep_under_fire_ends_as_one_left_alone(tmp_path: Path) -> None:
  told = soak.soak(tmp_path, kills=2, number=2, seed=1, cluster=False)
  assert told['kills'] == 2
  alone = tmp_path / 'undisturbed'
  path = soak.cells(2)[1].folder(tmp_path / 'round-0') / 'metrics.jsonl'
  *lines, last = path.read_text().splitlines()
  row = json.loads(last)
  row['eval/loss'] += 1e-9
  path.write_text('\n'.join([*lines, json.dumps(row)]))
  with pytest.raises(AssertionError):  # so the comparison can fail
    soak.assert_undisturbed(tmp_path / 'round-0', alone, 2)
