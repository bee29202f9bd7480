"""Sets of TensorFlow Datasets: texts, and translations as pairs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from transformer import spec
from transformer.config import Config
from transformer.config.data import wants_pairs
from transformer.data import cache
from transformer.data.corpus import Corpus, Documents
from transformer.errors import UserError


def tfds(declared: Any, config: Config) -> Corpus:
  """The `train` split of a set prepared as array_record; a text is its own group.

  For an encoder-decoder the pairs of a set of translations; one that lacks a side is passed over.
  Held-out documents come from `train` by hash, as in every source; other splits are not read.
  """
  flag = f'--data.source={spec.canonical(declared)}'
  builder = _builder(declared.name, flag, config)
  if 'train' not in builder.info.splits:
    raise UserError(f"{flag}: no split 'train' among {', '.join(sorted(builder.info.splits))}")
  paired = wants_pairs(config)
  if paired:
    inside, names = _translation(builder.info, flag)
    names = names[::-1] if declared.reverse else names
  elif declared.reverse:
    raise UserError(f'{flag}: reverse is of translations, for --model.architecture=encoder_decoder')
  else:
    inside, names = '', [_text_feature(builder.info.features, flag)]
  files = sorted(p for p in Path(builder.data_dir).iterdir() if p.is_file())
  stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]

  def documents() -> Documents:
    for k, record in enumerate(builder.as_data_source(split='train')):
      found = record[inside] if inside else record
      try:
        texts = [found[name].decode() for name in names]
      except UnicodeDecodeError as e:
        raise UserError(f'{flag}: record {k} is not UTF-8 at byte {e.start}') from e
      yield texts[0], *texts

  info = dict(source='tfds', set=builder.info.full_name)
  state = ['tfds', str(builder.data_dir), stats]
  if paired:
    info, state = info | dict(languages=names), [*state, names]
  return Corpus(state, info, documents, pairs=paired)


def _translation(info: Any, flag: str) -> tuple[str, list[str]]:
  """The feature that is a translation, '' for the whole record, and its two languages.

  The one that comes first in the name of the set's configuration, as in de-en, is the first.
  """
  import tensorflow_datasets as tfds

  features = {'': info.features, **info.features}
  found = [k for k, kind in features.items() if isinstance(kind, tfds.features.Translation)]
  if len(found) != 1 or len(features[found[0]]) != 2:
    raise UserError(
      f'{flag}: needs one feature that is a translation between two languages; it has '
      f'{", ".join(sorted(info.features))}'
    )
  return found[0], sorted(features[found[0]], key=(info.config_name or '').find)


def _builder(name: str, flag: str, config: Config) -> Any:
  """The prepared set; prepares it where TensorFlow is installed, which most of its code needs."""
  import tensorflow_datasets as tfds

  from transformer.data import stdlib_text

  try:
    with stdlib_text.quiet():
      builder = tfds.core.read_only_builder.builder_from_files(name)
  except tfds.core.DatasetNotFoundError:
    if importlib.util.find_spec('tensorflow') is None:
      raise UserError(
        f'{flag}: not prepared in {tfds.core.constants.DATA_DIR}; generating it needs '
        "TensorFlow: pip install 'isoffn[tfds]'"
      ) from None
    with cache.locked(cache.root(config.data.cache) / 'tfds'):
      builder = tfds.builder(name, file_format='array_record')
      builder.download_and_prepare()
  except ValueError:  # of which DatasetNotFoundError is one
    raise UserError(f'{flag}: a name is set, set/config or set/config:1.2.3') from None
  if builder.info.file_format.value != 'array_record':
    raise UserError(
      f'{flag}: prepared as {builder.info.file_format.value}; '
      'python -m tensorflow_datasets.scripts.convert_format turns it into array_record'
    )
  return builder


def _text_feature(features: Any, flag: str) -> str:
  import tensorflow_datasets as tfds

  texts = [name for name, kind in features.items() if isinstance(kind, tfds.features.Text)]
  if 'text' in texts:
    return 'text'
  if len(texts) != 1:
    raise UserError(
      f"{flag}: needs a feature 'text' or one text feature; it has {', '.join(sorted(features))}"
    )
  return texts[0]
