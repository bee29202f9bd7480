"""A launcher of its own process, to be interrupted: launcher.py workdir workers name…"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

from launch_fakes import FAKE_WORKER, make_cells

from launch import local

if __name__ == '__main__':
  outcome = local.run(sys.argv[1], make_cells(*sys.argv[3:]), int(sys.argv[2]), None, FAKE_WORKER)
  print('interrupted' if outcome.interrupted else 'finished', len(outcome.done), flush=True)
