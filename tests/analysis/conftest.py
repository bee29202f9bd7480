"""Writes run folders as the launcher and the trainer would, with numbers that are made up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

ACTIVATIONS = {  # variant -> (distance from the baseline in nats, spread of that distance)
  'relu': (0.0, 0.0),
  'gelu': (-0.044, 0.004),
  'swiglu': (-0.037, 0.004),
  'relu2': (-0.034, 0.010),
  'geglu': (-0.032, 0.006),
  'silu': (-0.023, 0.022),
  'identity': (0.077, 0.008),
}
WIDTHS = {'0.25': (0.128, 0.005), '1': (0.044, 0.005), '2': (0.0, 0.0), '4': (-0.024, 0.005),
          '8': (-0.028, 0.006), '16': (-0.030, 0.006)}  # fmt: skip
STEPS, SEQ_LEN, BATCH = 400, 64, 16


def _dump(path: Path, value) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value))


def base_config() -> dict:
  return {
    'model': {'d_model': 96, 'num_layers': 2, 'num_heads': 3, 'head_dim': 32, 'vocab_size': 1024},
    'ffn': {'d_ff': 384, 'activation': 'relu'},
    'data': {'source': 'stdlib', 'seq_len': SEQ_LEN, 'batch_size': BATCH},
    'optim': {'learning_rate': 0.008},
    'train': {'steps': STEPS},
    'launch': {'workers': 0},
    'seed': 0,
  }


def _rows(rng, final: float, until: int = STEPS):
  for step in range(10, until + 1, 10):
    loss = final + 3.3 * np.exp(-step / 45) + 0.35 * (1 - step / STEPS) ** 2
    row = {'step': step, 'train/loss': float(loss - 0.03 + rng.normal(0, 0.08))}
    row |= {'train/learning_rate': 0.008, 'perf/tokens_per_s': 50_000.0, 'perf/step_ms': 20.0}
    if step % 100 == 0:
      row |= {'eval/loss': float(loss), 'eval/bits_per_byte': float(loss / np.log(2) / 2.6)}
    yield row


def _provenance() -> dict:
  return {
    'git_commit': '0123456789abcdef0123456789abcdef01234567',
    'versions': {'jax': '0.10.2', 'flax': '0.12.8', 'isoffn': '0.1.0'},
    'python': '3.11.2',
    'device': 'cpu',
    'machine': 'AMD EPYC',
    'cores': 2,
    'code': 'c0de' * 4,
    'data': {'fingerprint': 'da7a' * 4, 'source': 'stdlib', 'python': '3.11.2', 'documents': 566,
             'train_tokens': 2_950_000, 'held_out_tokens': 240_128, 'held_out_bytes': 613_000},
    'command': 'python -m experiments.activations',
    'started': '2025-01-01T00:00:00Z',
  }  # fmt: skip


def _done(cell: Path, final: float, config: dict) -> None:
  _dump(cell / 'config.json', config)
  _dump(cell / 'provenance.json', _provenance())
  rng = np.random.default_rng(int(cell.name.split('-seed')[1][0]))  # seeds share their batches
  (cell / 'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in _rows(rng, final)))
  _dump(cell / 'done.json', {
    'step': STEPS, 'eval/loss': final, 'eval/bits_per_byte': final / np.log(2) / 2.6,
    'tokens_per_s': 50_000.0, 'seconds': 8.2, 'skipped_steps': 0, 'params': 319_968,
    'tokens': STEPS * SEQ_LEN * BATCH, 'code': 'c0de' * 4, 'data': 'da7a' * 4, 'token': 't',
  })  # fmt: skip


def write_folder(
  path: Path,
  variants: dict = ACTIVATIONS,
  seeds: int = 4,
  baseline: str = 'relu',
  name: str = 'activations',
  variable: str = 'ffn.activation',
  failed: tuple[str, ...] = (),
  unfinished: tuple[str, ...] = (),
  waiting: tuple[str, ...] = (),
  references: bool = True,
  **extra,
) -> Path:
  """Writes an experiment's folder; `failed` and the like name cells as in 'relu-seed0'."""
  rng = np.random.default_rng(1)
  seed_effect = rng.normal(0, 0.009, seeds)
  cells = []
  for variant, (distance, spread) in variants.items():
    noise = rng.normal(0, 1, seeds)
    noise = (noise - noise.mean()) / max(noise.std(), 1e-9) if seeds > 1 else 0 * noise
    for seed in range(seeds):
      cell_name = f'{variant}-seed{seed}'
      gated = 'glu' in variant
      d_ff = int(float(variant) * 96) if name == 'ffn_width' else 256 if gated else 384
      params = 319_968 + 2 * 2 * 96 * (d_ff - 384) if name == 'ffn_width' else 319_968
      folder = f'{cell_name}-1a2b3c4d'
      cells.append(dict(name=cell_name, variant=variant, seed=seed, folder=folder, params=params,
                        flops_per_token=6 * params, d_ff=d_ff, d_model=96))  # fmt: skip
      cell = path / 'cells' / folder
      if cell_name in failed:
        _dump(cell / 'failed.json', {'cause': 'bug', 'message': 'ValueError: <b>shapes</b> & sizes',
              'log_tail': 'Traceback (most recent call last):\n  File "x.py"\nValueError: <b>',
              'attempts': 2})  # fmt: skip
      elif cell_name in unfinished:
        _dump(cell / 'claim.json', {})
        _dump(
          cell / 'heartbeat.json', {'count': 3, 'step': 120, 'steps': STEPS, 'phase': 'training'}
        )
        rows = ''.join(json.dumps(r) + '\n' for r in _rows(rng, 3.8, 120))
        (cell / 'metrics.jsonl').write_text(rows + '{"step": 130, "train/lo')
      elif cell_name not in waiting:
        _done(cell, 3.815 + distance + seed_effect[seed] + spread * noise[seed], base_config())
  _dump(path / 'experiment.json', {
    'name': name, 'question': 'Which activation is best in the FFN at equal parameters?',
    'variable': variable, 'baseline': baseline, 'match': 'params', 'cells': cells,
    'command': f'python -m experiments.{name} --workdir={path} --seeds=0..{seeds - 1}',
    'base': base_config(), **extra,
  })  # fmt: skip
  _dump(path / 'resolved.json', base_config())
  if references:
    _dump(path / 'references.json', {'unigram': 5.49, 'bigram': 3.94, 'tokens': 2_950_000,
          'unigram_bits_per_byte': 3.05, 'bigram_bits_per_byte': 2.19})  # fmt: skip
  return path


@pytest.fixture
def run_folder(tmp_path):
  """write_folder into this test's own folder: run_folder(seeds=…, failed=…)."""

  def write(**options) -> Path:
    return write_folder(tmp_path / 'runs' / options.get('name', 'activations'), **options)

  return write
