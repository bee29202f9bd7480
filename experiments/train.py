"""Trains one Transformer: the shape, data and rates that the flags say.

  python -m experiments.train                                      a small run, under a minute
  python -m experiments.train --preset=bench --train.steps=2000 --workdir=runs/bench
  python -m experiments.train --data.source='text:corpus/**/*.txt' --ffn.activation=swiglu
  python -m experiments.train --model.architecture=encoder         of masked tokens
  python -m experiments.train --model.architecture=encoder_decoder  from a source to a target

The same command again continues an interrupted run. Then: experiments.generate. Many at once:
launch.sweep.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments import lab
from experiments.plan import Experiment
from launch.cells import Cell
from launch.search import Search
from transformer import flags
from transformer.config import PRESETS, resolve

NAME = 'train'
QUESTIONS = {
  'decoder': 'How well does this Transformer model held-out text?',
  'encoder': 'How well does this Transformer find hidden tokens of held-out text?',
  'encoder_decoder': 'How well does this Transformer tell held-out targets from their sources?',
}

lab.define_flags(NAME, **PRESETS['pilot'], **{'train.eval_every': 100})


def main() -> int:
  config = resolve(flags.asked())
  variant = config.ffn.activation
  return run([Cell(f'{variant}-seed{config.seed}', variant, config)])


def run(cells: Sequence[Cell], by: str = '', search: Search | None = None) -> int:
  """Trains these cells: one, or those of a sweep, to be compared `by` what varies.

  search: what makes the cells, of which those given are but examples.
  """
  base = cells[0].config
  question = QUESTIONS[base.model.architecture]
  return lab.run(Experiment(NAME, question, flags.asked(), base, cells, by=by, search=search))


if __name__ == '__main__':
  flags.run(main)
