"""What this library writes, opened by transformers itself, where there is one.

Skipped without torch and transformers, which the project does not depend on:
ISOFFN_PEERS_PYTHON=/path/of/an/environment/bin/python names a Python that has them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.battery import jiggle, tiny, weights
from tests.interop import goldens
from transformer import spec
from transformer.config import Config
from transformer.data import tokenizers
from transformer.interop import hf

PEER = os.environ.get('ISOFFN_PEERS_PYTHON') or (
  sys.executable if all(map(importlib.util.find_spec, ('torch', 'transformers'))) else ''
)
pytestmark = pytest.mark.skipif(
  not PEER, reason='no torch and transformers: set ISOFFN_PEERS_PYTHON to a Python with them'
)
OWN = {  # configs of this library's own, none of them from a file
  'own_gpt2': {
    'model.positions': 'learned', 'model.norm': 'layernorm(epsilon=1e-05)', 'model.bias': True,
    'ffn.bias': True, 'ffn.activation': 'relu2', 'model.embedding_scale': 'one',
  },
  'own_gpt2_without_biases': {
    'model.positions': 'learned', 'model.norm': 'layernorm(epsilon=0.001)',
    'model.qkv_bias': True, 'model.embedding_scale': 'one', 'model.tied': False,
  },
  'own_llama': {
    'model.embedding_scale': 'one', 'ffn.activation': 'product(tanh, identity)',
    'model.positions': 'rotary(base=99.0)', 'model.num_kv_heads': 1, 'model.head_dim': 6,
    'ffn.bias': True,
  },
  'own_mistral': {
    'model.embedding_scale': 'one', 'ffn.activation': 'reglu', 'model.attention_window': 2,
    'model.d_model': 15, 'model.head_dim': 4, 'model.tied': False,
  },
  'own_mixtral': {
    'model.embedding_scale': 'one', 'ffn.activation': 'geglu', 'model.num_kv_heads': 1,
    'model.head_dim': 6, 'moe.experts': 5, 'moe.router': "topk(k=3, score='after')",
    'moe.dispatch': 'capacity', 'moe.capacity_factor': 9.0,
  },
  'own_bert': {
    'model.architecture': 'encoder', 'model.positions': 'learned', 'model.norm': 'layernorm',
    'model.norm_placement': 'post', 'model.embedding_norm': True, 'model.token_types': 2,
    'model.embedding_scale': 'one', 'model.head': 'transform', 'ffn.activation': 'silu',
    'model.tied': False,
  },
  'own_marian_without_biases': {
    'model.architecture': 'encoder_decoder', 'model.positions': 'sinusoidal',
    'model.norm': 'layernorm(epsilon=1e-05)', 'model.norm_placement': 'post',
    'model.num_encoder_layers': 1, 'ffn.encoder_ratios': '2.5', 'data.source_len': 6,
  },
}  # fmt: skip
OWN['own_marian_untied'] = OWN['own_marian_without_biases'] | {'model.tied': False}
OWN['own_marian_apart'] = OWN['own_marian_untied'] | {'model.shared_source': False}


def _drawn(name: str) -> tuple[Config, dict]:
  if name in OWN:
    config = tiny(**OWN[name])
    return config, jiggle(weights(config))
  config, params = hf.load(goldens.FOLDER / name)
  return config, jiggle(params, seed=1)


def _given(config: Config) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, ...]]:
  """Tokens as transformers takes them, and as this library does."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, config.model.vocab_size, (2, 8)).astype(np.int32)
  if config.model.architecture != 'encoder_decoder':
    return {'input_ids': tokens, 'attention_mask': np.ones_like(tokens)}, (tokens,)
  source, mask = tokens[:, :6], np.ones((2, 6), np.int32)
  mask[1, 4:] = 0
  given = {'input_ids': source, 'attention_mask': mask, 'decoder_input_ids': tokens}
  return given, (np.where(mask > 0, source, -1), tokens)


TEXT = 'Zwölf Boxkämpfer, 한글 & naïve\tcafés: def f(x): return x + 1'


def _tokenizers(folder: Path) -> dict[str, tokenizers.Byte | tokenizers.Subword]:
  """Those that runs are trained with, each in a folder of its own as tokenizer.json."""
  made = {
    'byte': tokenizers.Byte(),
    'bpe': tokenizers.bpe(spec.parse('data.tokenizer', 'bpe(vocab_size=300)'), [TEXT * 3]),
    'wordpiece': tokenizers.wordpiece(
      spec.parse('data.tokenizer', 'wordpiece(vocab_size=520)'), [TEXT * 3]
    ),
  }
  for name, tokenizer in made.items():
    (folder / name).mkdir()
    (folder / name / 'tokenizer.json').write_text(tokenizer.to_json())
  return made


@pytest.fixture(scope='module')
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
  """What transformers says of each model, all in one process; it takes seconds to import."""
  folder, ours = tmp_path_factory.mktemp('live'), {}
  for name in (*goldens.NAMES, *OWN):
    config, params = _drawn(name)
    hf.save(folder / name, config, params)
    given, tokens = _given(config)
    np.savez(folder / name / 'given.npz', **given)
    ours[name] = np.asarray(goldens.logits(config, params, *tokens))
  (folder / 'home').mkdir()
  for name, tokenizer in _tokenizers(folder / 'home').items():
    config = tiny(**OWN['own_llama'], **{'model.vocab_size': tokenizer.vocab_size})
    hf.save(folder / name, config, weights(config), companions=folder / 'home' / name)
    (folder / name / 'text.txt').write_text(TEXT)
    given, _ = _given(config)
    np.savez(folder / name / 'given.npz', **given)
    ours[name] = tokenizer.encode([TEXT])[0]
  script = Path(__file__).with_name('peer.py')
  folders = [str(folder / name) for name in ours]
  env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  ran = subprocess.run([PEER, script, *folders], capture_output=True, text=True, env=env)
  assert ran.returncode == 0, ran.stderr
  said = json.loads(ran.stdout.splitlines()[-1])
  return {
    name: {**entry, 'ours': ours[name], 'theirs': np.load(folder / name / 'logits.npy')}
    for name, entry in zip(ours, said, strict=True)
  }


@pytest.mark.parametrize('name', [*goldens.NAMES, *OWN])
def test_transformers_agrees(name: str, told: dict[str, dict]) -> None:
  found = told[name]
  assert found['missing_keys'] == found['unexpected_keys'] == []
  assert np.abs(found['theirs']).max() > 0.5
  np.testing.assert_allclose(found['theirs'], found['ours'], atol=1e-4)


@pytest.mark.parametrize('name', ['byte', 'bpe', 'wordpiece'])
def test_transformers_cuts_text_as_the_run_did(name: str, told: dict[str, dict]) -> None:
  assert told[name]['ids'] == told[name]['ours'].tolist()
  assert told[name]['end'] == 0
