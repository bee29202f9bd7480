"""--data.source=tfds: a set prepared as array_record, read without its code or TensorFlow."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from transformer import data
from transformer.errors import UserError


def _prepare(folder, name, features, split='train'):
  """Writes a set of 200 records under `folder`, as another program would have."""
  import tensorflow_datasets as tfds

  class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')
    url_infos = None

    def _info(self):
      kinds = {f: tfds.features.Text() for f in features} | {'n': tfds.features.Scalar(np.int64)}
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(kinds))

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples()}

    def _generate_examples(self):
      for k in range(200):
        yield k, {f: f'{f} {k} of a set' for f in features} | {'n': k}

  Tiny.name = name
  Tiny(data_dir=folder, file_format='array_record').download_and_prepare()


@pytest.fixture
def prepared(tmp_path, monkeypatch):
  import tensorflow_datasets as tfds

  monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', str(tmp_path / 'sets'))
  return lambda *args, **kwargs: _prepare(tmp_path / 'sets', *args, **kwargs)


@pytest.mark.parametrize('features', [('text',), ('title', 'text'), ('sentence',)])
def test_reads_the_text_feature(make, prepared, features):
  prepared('tiny', features)
  loaded = data.load(make(**{'data.source': 'tfds:tiny'}))
  assert loaded.info['documents'] == 200 and loaded.info['set'] == 'tiny/1.0.0'
  assert 5 <= loaded.info['held_out_groups'] <= 40
  text = ''.join(map(loaded.tokenizer.decode, (*loaded.train, *loaded.held_out)))
  assert all(f'{features[-1]} {k} of a set' in text for k in range(200))


def message(make, name):
  with pytest.raises(UserError) as e:
    data.load(make(**{'data.source': f'tfds:{name}'}))
  return str(e.value)


def test_no_text_feature(make, prepared):
  prepared('pairs', ('left', 'right'))
  assert message(make, 'pairs') == (
    "--data.source=tfds:pairs: needs a feature 'text' or one text feature; it has left, n, right"
  )


def test_no_train_split(make, prepared):
  prepared('tiny', ('text',), split='test')
  assert message(make, 'tiny') == "--data.source=tfds:tiny: no split 'train' among test"


def test_malformed_name(make, prepared):
  assert message(make, '../etc') == (
    '--data.source=tfds:../etc: a name is set, set/config or set/config:1.2.3'
  )


def test_prepared_in_another_format(make, prepared, tmp_path):
  prepared('tiny', ('text',))
  [info] = tmp_path.rglob('dataset_info.json')
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  assert message(make, 'tiny') == (
    '--data.source=tfds:tiny: prepared as tfrecord; '
    'python -m tensorflow_datasets.scripts.convert_format turns it into array_record'
  )


@pytest.mark.skipif(
  importlib.util.find_spec('tensorflow') is not None, reason='TensorFlow would generate it'
)
def test_not_prepared(make, prepared, tmp_path):
  assert message(make, 'lm1b') == (
    f'--data.source=tfds:lm1b: not prepared in {tmp_path}/sets; generating it needs TensorFlow: '
    "pip install 'isoffn[tfds]'"
  )
