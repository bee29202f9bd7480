"""--data.source=tfds: a set prepared as array_record, read without its code or TensorFlow."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from transformer import data
from transformer.errors import UserError


def _write(folder, name, features, record, split='train', config=None):
  """Writes a set of 200 records under `folder`, as another program would have."""
  import tensorflow_datasets as tfds

  class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []
    url_infos = None

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples()}

    def _generate_examples(self):
      return ((k, record(k)) for k in range(200))

  Tiny.name = name
  Tiny(data_dir=folder, file_format='array_record').download_and_prepare()


def _prepare(folder, name, features, split='train'):
  """A set of these features of text, and a number."""
  import tensorflow_datasets as tfds

  kinds = {f: tfds.features.Text() for f in features} | {'n': tfds.features.Scalar(np.int64)}

  def record(k):
    return {f: f'{f} {k} of a set' for f in features} | {'n': k}

  _write(folder, name, tfds.features.FeaturesDict(kinds), record, split)


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


PAIRS = {'model.architecture': 'encoder_decoder', 'data.source_len': 40, 'data.seq_len': 40}


class TestTranslations:
  """Pairs of a set with a Translation, as those of wmt14_translate and para_crawl are."""

  def prepare(self, tmp_path, languages=('de', 'en'), inside='', config='de-en'):
    import tensorflow_datasets as tfds

    features = tfds.features.Translation(languages=languages)
    if inside:
      number = tfds.features.Scalar(np.int64)
      features = tfds.features.FeaturesDict({inside: features, 'n': number})

    def record(k):
      texts = {language: f'{language} {k} Größe' * (k != 7) for language in languages}
      return {inside: texts, 'n': k} if inside else texts

    _write(tmp_path / 'sets', 'tiny_translate', features, record, config=config)

  def load(self, make, source='tfds:tiny_translate/de-en', **changes):
    return data.load(make(**{'data.source': source} | PAIRS | changes))

  def sides(self, loaded):
    rows = loaded.rows[np.arange(len(loaded.rows))]
    cut = ((row[: loaded.source_len], row[loaded.source_len :]) for row in rows)
    train = [(loaded.tokenizer.decode(s), loaded.tokenizer.decode(t)) for s, t in cut]
    return sorted(train + loaded.held_out_texts())

  @pytest.mark.parametrize('inside', ['', 'translation'])
  def test_from_the_first_language_to_the_second(self, make, prepared, tmp_path, inside):
    self.prepare(tmp_path, inside=inside)
    loaded = self.load(make)
    there = [(f'de {k} Größe', f'en {k} Größe') for k in range(200) if k != 7]  # it has no text
    assert self.sides(loaded) == sorted(there)
    assert loaded.info['set'] == 'tiny_translate/de-en/1.0.0'
    assert loaded.info['languages'] == ['de', 'en'] and loaded.info['documents'] == 199
    assert 5 <= loaded.info['held_out_pairs'] <= 40

  def test_and_back(self, make, prepared, tmp_path):
    self.prepare(tmp_path)
    there = self.load(make)
    back = self.load(make, "tfds('tiny_translate/de-en', reverse=True)")
    assert back.info['languages'] == ['en', 'de'] and back.fingerprint != there.fingerprint
    assert self.sides(back) == sorted((t, s) for s, t in self.sides(there))

  def test_the_name_tells_which_is_first(self, make, prepared, tmp_path):
    self.prepare(tmp_path, languages=('en', 'ru'), config='ru_to_en')
    loaded = self.load(make, 'tfds:tiny_translate/ru_to_en')
    assert loaded.info['languages'] == ['ru', 'en']

  def test_without_tensorflow(self, make, prepared, tmp_path):
    import sys

    self.prepare(tmp_path)
    self.load(make)
    assert 'tensorflow' not in sys.modules

  def error(self, call, *args, **changes):
    with pytest.raises(UserError) as e:
      call(*args, **changes)
    return str(e.value)

  def test_texts_are_no_translation(self, make, prepared, tmp_path):
    prepared('tiny', ('left', 'right'))
    needs = 'needs one feature that is a translation between two languages; it has'
    flag = '--data.source=tfds:tiny'
    assert self.error(self.load, make, 'tfds:tiny') == f'{flag}: {needs} left, n, right'
    self.prepare(tmp_path, languages=('de', 'en', 'fr'))
    assert self.error(self.load, make) == f'{flag}_translate/de-en: {needs} de, en, fr'

  def test_a_decoder_reads_texts(self, make, prepared, tmp_path):
    self.prepare(tmp_path)
    other = {'model.architecture': 'decoder'}
    flag = '--data.source=tfds:tiny_translate/de-en'
    assert self.error(self.load, make, **other) == (
      f"{flag}: needs a feature 'text' or one text feature; it has de, en"
    )
    source = "tfds(name='tiny_translate/de-en', reverse=True)"
    assert self.error(self.load, make, source, **other) == (
      f'--data.source={source}: reverse is of translations, for '
      '--model.architecture=encoder_decoder'
    )
