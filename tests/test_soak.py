"""The short form of tests/soak.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import soak


def test_a_sweep_under_fire_ends_as_one_left_alone(tmp_path: Path) -> None:
  told = soak.soak(tmp_path, kills=2, number=3, seed=1)
  print(told)
  assert told['kills'] == 2
  alone = tmp_path / 'undisturbed'
  path = soak.cells(3)[1].folder(tmp_path / 'round-0') / 'metrics.jsonl'
  lines = path.read_text().splitlines()
  row = json.loads(lines[-1])
  path.write_text(
    '\n'.join([*lines[:-1], json.dumps(row | {'eval/loss': row['eval/loss'] + 1e-9})])
  )
  with pytest.raises(AssertionError):  # so the comparison can fail
    soak.assert_undisturbed(tmp_path / 'round-0', alone, 3)
