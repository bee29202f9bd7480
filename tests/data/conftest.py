"""Small configs over a cache of the test's own."""

from __future__ import annotations

import pytest

from transformer.config import Config, resolve


@pytest.fixture
def make(tmp_path):
  """make(**{'data.seq_len': 8}) -> a resolved config; short rows and a cache in tmp_path."""

  def config(**changes):
    small = {'data.cache': str(tmp_path / 'cache'), 'data.seq_len': 8, 'data.batch_size': 4}
    return resolve(Config().replace(**small | {'data.tokenizer': 'byte'} | changes))

  return config


@pytest.fixture(scope='session')
def stdlib_config(tmp_path_factory):
  """The standard library at the pilot's size, prepared once for all tests that read it."""
  return resolve(
    Config().replace(
      **{
        'data.cache': str(tmp_path_factory.mktemp('cache')),
        'data.tokenizer': 'bpe(vocab_size=1024)',
        'data.seq_len': 64,
      }
    )
  )
