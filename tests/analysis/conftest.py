"""Writes run folders as the launcher and the trainer would, with numbers that are made up."""

from __future__ import annotations

import hashlib
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
TOKENIZERS = {'byte': (0.0, 0.0), 'bpe(vocab_size=512)': (-0.08, 0.006), 'bpe': (-0.1, 0.004)}
BYTES = {'byte': 1.0, 'bpe(vocab_size=512)': 1.9, 'bpe': 3.3}  # of text in a token
STEPS, SEQ_LEN, BATCH = 400, 64, 16


def _dump(path: Path, value) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value))


def hash_of(config: dict) -> str:
  return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]


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


def set_to(config: dict, changes: dict) -> dict:
  """A nested config with changes by flag name."""
  config = json.loads(json.dumps(config))
  for path, value in changes.items():
    section, _, name = path.rpartition('.')
    (config.setdefault(section, {}) if section else config)[name] = value
  return config


def inside_rows(rng, name: str, layers: int = 2) -> dict:
  """What a row of an evaluation says of the FFNs."""
  told = {}
  for layer in range(layers):
    zeros = {'relu': 0.8, 'relu2': 0.7}.get(name)
    told |= {f'ffn/zeros/{layer}': zeros + 0.05 * layer + rng.normal(0, 0.01)} if zeros else {}
    told[f'ffn/kurtosis/{layer}'] = 4.0 * (1 + layer) + rng.normal(0, 0.2)
    told[f'ffn/effective_rank/{layer}'] = 180 - 30 * layer + rng.normal(0, 3)
    told[f'ffn/up_norm/{layer}'] = 12.0 + layer + rng.normal(0, 0.1)
  return told


def _bits(loss: float) -> float:
  """Bits per byte of nats per token where a token is 2.6 bytes."""
  return float(loss / np.log(2) / 2.6)


def _rows(rng, final: float, until: int = STEPS, inside=None, spikes: tuple = (), size=2.6):
  for step in range(10, until + 1, 10):
    loss = final + 3.3 * np.exp(-step / 45) + 0.35 * (1 - step / STEPS) ** 2
    nats = loss * size / 2.6
    row = {'step': step, 'train/loss': float(nats - 0.03 + rng.normal(0, 0.08))}
    row |= {'train/learning_rate': 0.008, 'perf/tokens_per_s': 50_000.0, 'perf/step_ms': 20.0}
    if step % 100 == 0:
      row |= {'eval/loss': float(nats), 'eval/bits_per_byte': _bits(loss)}
      row |= inside(rng) if inside else {}
    if spikes:
      row['train/spikes'] = float(step in spikes)
    yield row


def _provenance(size: float, fingerprint: str) -> dict:
  return {
    'git_commit': '0123456789abcdef0123456789abcdef01234567',
    'versions': {'jax': '0.10.2', 'flax': '0.12.8', 'isoffn': '0.1.0'},
    'python': '3.11.2',
    'device': 'cpu',
    'machine': 'AMD EPYC',
    'cores': 2,
    'code': 'c0de' * 4,
    'data': {'fingerprint': fingerprint, 'source': 'stdlib', 'python': '3.11.2', 'documents': 566,
             'train_bytes': 7_670_000, 'train_tokens': int(7_670_000 / size),
             'held_out_tokens': int(624_333 / size), 'held_out_bytes': 613_000},
    'command': 'python -m experiments.activations',
    'started': '2025-01-01T00:00:00Z',
  }  # fmt: skip


def _done(cell: Path, final: float, inside=None, spikes: tuple = (), tokenizer: str = '') -> None:
  size = BYTES.get(tokenizer, 2.6)
  fingerprint = hash_of({'tokenizer': tokenizer}) if tokenizer in BYTES else 'da7a' * 4
  _dump(cell / 'provenance.json', _provenance(size, fingerprint))
  rng = np.random.default_rng(int(cell.name.split('-seed')[1][0]))  # seeds share their batches
  (cell / 'metrics.jsonl').write_text(
    ''.join(json.dumps(r) + '\n' for r in _rows(rng, final, STEPS, inside, spikes, size))
  )
  _dump(cell / 'done.json', {
    'step': STEPS, 'eval/loss': final * size / 2.6, 'eval/bits_per_byte': _bits(final),
    'tokens_per_s': 50_000.0, 'seconds': 8.2, 'skipped_steps': 0, 'params': 319_968,
    'tokens': STEPS * SEQ_LEN * BATCH, 'code': 'c0de' * 4, 'data': fingerprint, 'token': 't',
    **({'spikes': len(spikes)} if spikes else {}),
  })  # fmt: skip


def write_folder(
  path: Path,
  variants: dict = ACTIVATIONS,
  seeds: int | range = 4,
  baseline: str = 'relu',
  name: str = 'activations',
  variable: str = 'ffn.activation',
  failed: tuple[str, ...] = (),
  unfinished: tuple[str, ...] = (),
  waiting: tuple[str, ...] = (),
  references: bool = True,
  settings: dict | None = None,
  shift: float = 0.0,
  inside: bool = False,
  spikes: dict | None = None,
  shapes: dict | None = None,
  **extra,
) -> Path:
  """Writes an experiment's folder; `failed` and the like name cells as in 'relu-seed0'.

  settings: of all cells, by flag name. shift: of all losses. inside: with rows ffn/…. spikes:
  name of a cell -> steps of its loss spikes. shapes: variant -> other entries of experiment.json.
  """
  rng = np.random.default_rng(1)
  base = set_to(base_config(), settings or {})
  spikes, shapes = spikes or {}, shapes or {}
  numbers = range(seeds) if isinstance(seeds, int) else seeds
  seeds = len(numbers)
  seed_effect = rng.normal(0, 0.009, max(numbers) + 1)
  cells = []
  for variant, (distance, spread) in variants.items():
    noise = rng.normal(0, 1, seeds)
    noise = (noise - noise.mean()) / max(noise.std(), 1e-9) if seeds > 1 else 0 * noise
    for i, seed in enumerate(numbers):
      cell_name = f'{variant}-seed{seed}'
      gated = 'glu' in variant
      d_ff = int(float(variant) * 96) if name == 'ffn_width' else 256 if gated else 384
      params = 319_968 + 2 * 2 * 96 * (d_ff - 384) if name == 'ffn_width' else 319_968
      named = variable in ('', 'ffn', 'ffn.activation', 'data.tokenizer', 'moe.router')
      value = variant if named else float(variant)
      told = {variable: value} if '.' in variable else {}
      config = set_to(base, {**told, 'ffn.d_ff': d_ff, 'seed': seed})
      folder = f'{cell_name}-{hash_of(config)}'
      cells.append(dict(name=cell_name, variant=variant, seed=seed, folder=folder, params=params,
                        flops_per_token=6 * params, d_ff=d_ff, ratio=d_ff / 96, d_model=96,
                        num_layers=2, num_heads=3) | shapes.get(variant, {}))  # fmt: skip
      cell = path / 'cells' / folder
      _dump(cell / 'config.json', config)
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
        final = 3.815 + shift + distance + seed_effect[seed] + spread * noise[i]
        rows = (lambda rng, name=variant: inside_rows(rng, name)) if inside else None
        tokenizer = config['data'].get('tokenizer', '')
        _done(cell, final, rows, spikes.get(cell_name, ()), tokenizer)
  _dump(path / 'experiment.json', {
    'name': name, 'question': 'Which activation is best in the FFN at equal parameters?',
    'variable': variable, 'baseline': baseline, 'match': 'params', 'cells': cells,
    'command': f'python -m experiments.{name} --workdir={path} --seeds=0..{seeds - 1}',
    'base': base, **extra,
  })  # fmt: skip
  _dump(path / 'resolved.json', base)
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
