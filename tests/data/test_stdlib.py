"""The standard library through its TFDS builder, as every first run reads it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from transformer import data, spec
from transformer.data import sources


@pytest.fixture(scope='module')
def loaded(stdlib_config):
  return data.load(stdlib_config)


def test_bodies_are_the_declared_ones():
  assert set(sources.SOURCES) == set(spec.variants('data.source'))


def test_about_a_tenth_is_held_out(loaded):
  info = loaded.info
  assert info['python'] == '.'.join(map(str, sys.version_info[:3]))
  assert info['documents'] > 400 and info['train_bytes'] > 5e6
  assert 0.08 < info['held_out_bytes'] / (info['held_out_bytes'] + info['train_bytes']) < 0.12
  assert 2 < loaded.held_out_bytes / info['held_out_tokens'] < 4  # bytes a token, at 1024 entries
  assert loaded.train[0].max() < 1024 and isinstance(loaded.train[0].base, np.ndarray)


def test_tests_tables_and_generated_files_are_left_out():
  names = [name for name, _ in sources._modules()]
  assert 'argparse.py' in names and 'json/decoder.py' in names
  parts = {part for name in names for part in name.split('/')}
  assert not parts & {'test', 'tests', 'idle_test', 'encodings', 'site-packages', 'topics.py'}


def test_stream_holds_the_modules_text(loaded):
  text = ''.join(map(loaded.tokenizer.decode, (*loaded.train, *loaded.held_out)))
  for name, content in sources._modules()[::97]:
    assert content.decode()[:60_000] in text, name


def test_written_as_array_record_without_tensorflow(loaded, stdlib_config):
  folder = Path(stdlib_config.data.cache)
  assert list(folder.rglob('*.array_record*'))
  import tensorflow_datasets as tfds

  [info] = folder.rglob('dataset_info.json')
  source = tfds.builder_from_directory(info.parent).as_data_source(split='train')
  assert 'tensorflow' not in sys.modules
  assert set(source[0]) == {'package', 'text'}


def test_an_epoch_visits_each_row_once(loaded):
  count = len(loaded.rows)
  assert sorted(loaded.order(0, count).tolist()) == list(range(count))


def test_warm_start_is_light(loaded, stdlib_config):
  code = (
    'import sys, time; from transformer import data; from transformer.config import Config; '
    'start = time.perf_counter(); import json; '
    'loaded = data.load(Config.from_json(json.loads(sys.argv[1]))); '
    'seconds = time.perf_counter() - start; '
    "heavy = [m for m in ('jax', 'grain', 'tensorflow_datasets') if m in sys.modules]; "
    'print(loaded.fingerprint, seconds < 2, heavy)'
  )
  import json

  out = subprocess.run(
    [sys.executable, '-c', code, json.dumps(stdlib_config.to_json())],
    capture_output=True,
    text=True,
  )
  assert out.stdout == f'{loaded.fingerprint} True []\n' and not out.stderr


def test_random_access_is_cheap(loaded):
  loaded.train_batch(0)
  start = time.perf_counter()
  for i in range(100):
    loaded.train_batch(i * 7919)
  assert (time.perf_counter() - start) / 100 < 3e-3  # 0.1 ms on two idle cores


def test_preparing_prints_nothing(tmp_path):
  from transformer.data import stdlib_text

  code = (
    'import sys; from pathlib import Path; from transformer.data import stdlib_text; '
    "stdlib_text.prepare(lambda: iter([('a', 'text')]), '1.2.3', Path(sys.argv[1]))"
  )
  out = subprocess.run(
    [sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True, check=True
  )
  assert (out.stdout, out.stderr) == ('', '')
  assert list(stdlib_text.read('1.2.3', tmp_path)) == [('a', 'text')]
