"""A task of a cluster around the worker that only pretends to train."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

from launch_fakes import FAKE_WORKER

from launch import task

if __name__ == '__main__':
  sys.exit(task.main(worker=FAKE_WORKER))
