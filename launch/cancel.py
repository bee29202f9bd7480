"""Stops all that runs, or waits in a queue, for a sweep or an experiment.

  python -m launch.cancel --workdir=runs/sweep

Cells save themselves first; launch.retry, or the same command again, goes on with them.
"""

from __future__ import annotations

from pathlib import Path

from launch import engines, folder
from transformer import flags

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.script_flag('str', 'workdir', 'runs/sweep', 'folder of a sweep or an experiment')


def main() -> int:
  workdir = Path(FLAGS.workdir)
  folder.asked(workdir)
  told = engines.cancel(workdir)
  print('\n'.join(told or [f'nothing runs for {workdir}']))
  return 0


if __name__ == '__main__':
  define_flags()
  flags.run(main)
