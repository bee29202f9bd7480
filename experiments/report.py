"""Writes the report of an experiment's folder again, finished or not; or one over several folders.

  python -m experiments.report --workdir=runs/activations
  python -m experiments.report --workdir=runs/a,runs/b --by=ffn.activation,optim.learning_rate

With --by, a variant is all cells with the same values of those settings, whichever folder they are
in; `optim.name.b2` names an argument of a variant. A cell that is in two folders counts once.
Two settings of which one is a number are drawn as loss against it, a line for each value of the
other. Writes report.html, report.md, summary.csv, table.tex (LaTeX) and plots/*.png.
"""

from __future__ import annotations

from experiments import lab
from transformer import flags

WORKDIR = flags.script_flag(
  'str', 'workdir', 'runs/activations', 'folders of experiments, separated by commas'
)
BY = flags.script_flag(
  'str', 'by', '', 'settings to compare by, separated by commas; empty: as the experiment does'
)
BASELINE = flags.script_flag(
  'str', 'baseline', '', "group to compare with, as in 'relu, 0.008'; empty: the experiment's"
)
OUT = flags.script_flag(
  'str', 'out', '', 'folder of the report; empty: the only workdir, or merged beside the first'
)


def main() -> int:
  from rich.console import Console

  from transformer.analysis import report

  workdirs = [part.strip() for part in WORKDIR.value.split(',') if part.strip()]
  with Console(stderr=True).status('writing the report'):
    results = report.write(workdirs, BY.value, BASELINE.value, OUT.value or None)
  report.console(results, lab.console())
  return 0


if __name__ == '__main__':
  flags.run(main)
