"""Where text comes from.

A source turns its declaration and the config into a Corpus, a tuple of them (a mixture), or, where
there is no text, into Data. A user's own may simply be a generator of (group, text).
To add one: declare it in config/data.py, and register its body in SOURCES under that name.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import importlib.util
import inspect
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformer import spec
from transformer.config import Config
from transformer.data import cache
from transformer.data.corpus import Corpus, Documents, file_states, from_generator, matches
from transformer.data.records import jsonl, parquet
from transformer.data.synthetic import synthetic
from transformer.data.token_files import tokens
from transformer.errors import UserError

SOURCES: dict[str, Callable] = spec.bodies('data.source')

_MODULE_LIMIT = 60_000  # characters kept of one module of the standard library
# Tests; tables (idna, code pages), 10 % of the held-out text if they land there.
_SKIPPED = {'test', 'tests', 'idle_test', 'encodings', '__pycache__', 'site-packages'}
_FEW_FILES = 20  # with fewer, holding out whole files would miss the share by far


def stdlib(declared: Any, config: Config) -> Corpus:
  """The running interpreter's library, through a TFDS builder; groups are top-level packages."""
  modules = _modules()
  version = '.'.join(map(str, sys.version_info[:3]))
  # By content, not by time: two installations of one version are the same corpus (40 ms).
  state = hashlib.sha256(b''.join(f'{n}\0{len(b)}\0'.encode() + b for n, b in modules)).hexdigest()
  folder = cache.root(config.data.cache) / f'stdlib-{version}-{state[:16]}'

  def documents() -> Documents:
    from transformer.data import stdlib_text

    cache.once(folder, lambda part: stdlib_text.prepare(lambda: _decoded(modules), version, part))
    return stdlib_text.read(version, folder)

  return Corpus(['stdlib', version, state], dict(source='stdlib', python=version), documents)


def _modules() -> list[tuple[str, bytes]]:
  """(path inside the library, content) of its modules, without tests, tables and generated files.

  `sys.stdlib_module_names` leaves out what differs between builds of one version.
  """
  root, found = Path(sysconfig.get_path('stdlib')), []
  for folder, inside, files in os.walk(root):
    inside[:] = sorted(set(inside) - _SKIPPED)
    for path in (Path(folder, f) for f in sorted(files) if f.endswith('.py')):
      name = path.relative_to(root).as_posix()
      # topics.py is generated, and would be 43 % of the held-out text if it landed there.
      if _package(name) in sys.stdlib_module_names and name != 'pydoc_data/topics.py':
        found.append((name, path.read_bytes()))
  return found


def _decoded(modules: list[tuple[str, bytes]]) -> Iterator[tuple[str, str]]:
  for name, content in modules:
    try:
      yield _package(name), content.decode()[:_MODULE_LIMIT]
    except UnicodeDecodeError:  # a few modules declare another encoding
      continue


def _package(name: str) -> str:
  return name.partition('/')[0].removesuffix('.py')


def text(declared: Any, config: Config) -> Corpus:
  """UTF-8 files, a document and a group each; a few files are cut into a hundred pieces or more."""
  source = spec.canonical(declared)
  flag, paths = f'--data.source={source}', matches(declared.glob, source)
  total = sum(os.path.getsize(p) for p in paths)
  if not total:
    raise UserError(f'{flag}: the files hold no text')
  # Named from the first wildcard on (escaping brackets it), so that a corpus may move whole.
  root = os.path.dirname(glob.escape(os.path.expanduser(declared.glob)).partition('[')[0])
  size = min(max(total // 100, 200), 60_000) if len(paths) < _FEW_FILES else sys.maxsize

  def documents() -> Documents:
    for path in paths:
      for k, piece in enumerate(_pieces(_read(path, flag), size)):
        yield f'{os.path.relpath(path, root or ".")}#{k}', piece

  return Corpus(['text', file_states(paths)], dict(source='text', files=len(paths)), documents)


def _read(path: str, flag: str) -> str:
  try:
    return Path(path).read_bytes().decode()
  except UnicodeDecodeError as e:
    raise UserError(
      f'{flag}: {path} is not UTF-8 at byte {e.start}; convert it or leave it out'
    ) from e
  except OSError as e:
    raise UserError(f'{flag}: {path} cannot be read ({e.strerror})') from e


def _pieces(text: str, size: int) -> Iterator[str]:
  """Contiguous pieces of at most `size` characters, cut after a line where there is one."""
  start = 0
  while len(text) - start > size:
    end = text.rfind('\n', start, start + size) + 1 or start + size
    yield text[start:end]
    start = end
  yield text[start:]


def tfds(declared: Any, config: Config) -> Corpus:
  """The `train` split of a set prepared as array_record; a text is its own group.

  Held-out documents come from `train` by hash, as in every source; other splits are not read.
  """
  flag = f'--data.source={spec.canonical(declared)}'
  builder = _builder(declared.name, flag, config)
  if 'train' not in builder.info.splits:
    raise UserError(f"{flag}: no split 'train' among {', '.join(sorted(builder.info.splits))}")
  feature = _text_feature(builder.info.features, flag)
  files = sorted(p for p in Path(builder.data_dir).iterdir() if p.is_file())
  stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]

  def documents() -> Documents:
    for k, record in enumerate(builder.as_data_source(split='train')):
      try:
        document = record[feature].decode()
      except UnicodeDecodeError as e:
        raise UserError(f'{flag}: record {k} is not UTF-8 at byte {e.start}') from e
      yield document, document

  info = dict(source='tfds', set=builder.info.full_name)
  return Corpus(['tfds', str(builder.data_dir), stats], info, documents)


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


def mix(declared: Any, config: Config) -> tuple[Corpus, ...]:
  """The parts, each with its name and weight."""
  return tuple(
    dataclasses.replace(_one(part, config), name=spec.canonical(part), weight=weight)
    for part, weight in declared.weighted
  )


def _one(part: Any, config: Config) -> Corpus:
  made = opened(part, config)
  assert isinstance(made, Corpus)  # what is declared as text gives text
  return made


def opened(declared: Any, config: Config) -> Any:
  """What the source's body makes; of a generator function a Corpus."""
  body = SOURCES[declared.variant]
  if inspect.isgeneratorfunction(body):
    return from_generator(body, declared, config)
  return body(declared, config)


SOURCES.update(
  stdlib=stdlib,
  text=text,
  jsonl=jsonl,
  parquet=parquet,
  tfds=tfds,
  mix=mix,
  tokens=tokens,
  synthetic=synthetic,
)
