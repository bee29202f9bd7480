"""Lets this folder's tests find the real `launch`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# before tests/, whose folder of the same name would be taken for the package
sys.path.insert(0, str(Path(__file__).parents[2]))


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
  return tmp_path / 'run'
