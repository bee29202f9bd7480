"""Writes the report of an experiment's folder again, finished or not.

python -m experiments.report --workdir=runs/activations
"""

from __future__ import annotations

from experiments import lab
from transformer import flags

WORKDIR = flags.script_flag('str', 'workdir', 'runs/activations', 'folder of an experiment')


def main() -> int:
  from transformer.analysis import report

  report.console(report.write(WORKDIR.value), lab.console())
  return 0


if __name__ == '__main__':
  flags.run(main)
