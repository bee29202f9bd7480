"""The training step as a whole run drives it, beside the same step alone."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from transformer import metrics, train
from transformer.measure import training
from transformer.measure.measures import Asked, Measure
from transformer.measure.timing import quartiles

_LEAST = 60  # steps of a run
_ROWS = 20  # rows that a run's steps are logged in, at least


def measure(asked: Asked) -> Measure:
  """Runs `transformer.train.run` into a folder that is thrown away.

  A turn times the step alone, then as many steps within a run as asked.seconds hold, by the rows
  that it writes. host_share: how much longer a step takes there (batches, metrics, progress).
  Evaluation and checkpoints are a run's, too, but not counted: rows leave them out.
  """
  bare = training.measure(Asked('train', asked.config, seconds=asked.seconds))
  tokens = asked.config.data.batch_size * asked.config.data.seq_len

  def turn() -> dict:
    alone = bare.turn()
    steps = max(_LEAST, int(asked.seconds * 1e3 / alone['step_ms']))
    every = max(1, steps // _ROWS)
    config = asked.config.replace(**{'train.steps': steps, 'train.log_every': every})
    config = config.replace(**{'train.eval_every': steps, 'train.checkpoint_every': steps})
    with tempfile.TemporaryDirectory() as folder:
      train.run(config, Path(folder))
      rows = metrics.read(Path(folder) / metrics.FILE)
    rates = [row['perf/tokens_per_s'] for row in rows if 'perf/tokens_per_s' in row][1:]
    inside = statistics.median(rates)
    return alone | {
      'tokens_per_s': inside,
      'step_ms': 1e3 * tokens / inside,
      'gflops_per_s': alone['gflops_per_s'] * inside / alone['tokens_per_s'],
      'step_ms_quartiles': quartiles([1e3 * tokens / r for r in rates]),
      'times': len(rates),
      'bare_step_ms': alone['step_ms'],
      'host_share': 1 - inside / alone['tokens_per_s'],
    }

  return Measure(turn, bare.step, bare.origins, bare.facts)
