"""The standard library as a TensorFlow Datasets builder; TensorFlow itself is not needed.

Importing this module imports tensorflow_datasets: `sources.stdlib` does so inside functions.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging


class IsoffnStdlib(tfds.core.GeneratorBasedBuilder):
  """Modules of one Python version: package and text."""

  VERSION = tfds.core.Version('0.0.0')  # replaced by the version of Python
  url_infos = None  # nothing to download; looking for checksums would need importlib_resources

  def __init__(
    self, documents: Callable[[], Iterator[tuple[str, str]]], version: str, folder: Path
  ):
    self._documents = documents
    self.VERSION = tfds.core.Version(version)
    super().__init__(data_dir=folder, file_format='array_record')

  def _info(self) -> tfds.core.DatasetInfo:
    # Built directly: `dataset_info_from_configs` would list this folder for a builder's own files.
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict(
        {'package': tfds.features.Text(), 'text': tfds.features.Text()}
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
    return {'train': self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[int, dict]]:
    for key, (package, text) in enumerate(self._documents()):
      yield key, {'package': package, 'text': text}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Keeps TFDS from announcing download sizes and files read."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.WARNING)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.set_verbosity(verbosity)


def prepare(documents: Callable[[], Iterator[tuple[str, str]]], version: str, folder: Path) -> None:
  """Writes (package, text) pairs as array_record under `folder`."""
  tfds.disable_progress_bar()
  with quiet():
    IsoffnStdlib(documents, version, folder).download_and_prepare()


def read(version: str, folder: Path) -> Iterator[tuple[str, str]]:
  """The pairs that `prepare` wrote, in the same order."""
  with quiet():
    builder = tfds.builder_from_directory(folder / IsoffnStdlib.name / version)
    records = builder.as_data_source(split='train')
  for record in records:
    yield record['package'].decode(), record['text'].decode()
