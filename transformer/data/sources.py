"""Where text comes from.

A source turns its declaration and the config into a Corpus, a tuple of them (a mixture), or, where
there is no text, into Data. A user's own may simply be a generator of (group, text).
To add one: declare it in config/data.py, and register its body in SOURCES under that name.
"""

from __future__ import annotations

import codecs
import dataclasses
import functools
import glob
import hashlib
import inspect
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformer import spec
from transformer.config import Config
from transformer.config.data import wants_pairs
from transformer.data import cache, stdlib_pairs
from transformer.data.corpus import Corpus, Documents, file_states, from_generator, matches
from transformer.data.records import jsonl, parquet
from transformer.data.synthetic import synthetic
from transformer.data.tfds_sets import tfds
from transformer.data.token_files import tokens
from transformer.data.tsv import pairs
from transformer.errors import UserError

SOURCES: dict[str, Callable] = spec.bodies('data.source')

_MODULE_LIMIT = 60_000  # characters kept of one module of the standard library
# Tests; tables (idna, code pages), 10 % of the held-out text if they land there.
_SKIPPED = {'test', 'tests', 'idle_test', 'encodings', '__pycache__', 'site-packages'}
_BLOCK = 2**20  # bytes of a file in memory at a time
_FEW_FILES = 20  # with fewer, holding out whole files would miss the share by far


def stdlib(declared: Any, config: Config) -> Corpus:
  """The running interpreter's library, through a TFDS builder; groups are top-level packages.

  For an encoder-decoder its functions, as pairs of their code and what that does.
  """
  modules = _modules()
  version = '.'.join(map(str, sys.version_info[:3]))
  # By content, not by time: two installations of one version are the same corpus (40 ms).
  state = hashlib.sha256(b''.join(f'{n}\0{len(b)}\0'.encode() + b for n, b in modules)).hexdigest()
  info = dict(source='stdlib', python=version)
  if wants_pairs(config):
    named = [(_package(name), content) for name, content in modules]
    found = functools.cache(lambda: list(stdlib_pairs.pairs(named)))  # 5 s, and needed three times
    return Corpus(['stdlib pairs', version, state], info, lambda: iter(found()), pairs=True)
  folder = cache.root(config.data.cache) / f'stdlib-{version}-{state[:16]}'

  def documents() -> Documents:
    from transformer.data import stdlib_text

    cache.once(folder, lambda part: stdlib_text.prepare(lambda: _decoded(modules), version, part))
    return stdlib_text.read(version, folder)

  return Corpus(['stdlib', version, state], info, documents)


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
      for k, piece in enumerate(_pieces(path, size, flag)):
        yield f'{os.path.relpath(path, root or ".")}#{k}', piece

  return Corpus(['text', file_states(paths)], dict(source='text', files=len(paths)), documents)


def _pieces(path: str, size: int, flag: str) -> Iterator[str]:
  """Contiguous pieces of a file, of at most `size` characters, cut after a line where there is one.

  Only a piece that is the whole file is in memory with all of it.
  """
  text, start = '', 0
  for block in _blocks(path, _BLOCK if size < sys.maxsize else -1, flag):
    text, start = text[start:] + block, 0
    while len(text) - start > size:
      end = text.rfind('\n', start, start + size) + 1 or start + size
      yield text[start:end]
      start = end
  yield text[start:]


def _blocks(path: str, size: int, flag: str) -> Iterator[str]:
  """The text of a file, `size` bytes at a time; all at once if it is negative."""
  decoder, begin = codecs.getincrementaldecoder('utf-8')(), 0
  try:
    with open(path, 'rb') as file:
      while block := file.read(size):
        pending = len(decoder.getstate()[0])  # bytes of a character that is not yet whole
        yield decoder.decode(block)
        begin += len(block)
      pending = len(decoder.getstate()[0])
      decoder.decode(b'', final=True)
  except UnicodeDecodeError as e:
    at = begin - pending + e.start
    raise UserError(f'{flag}: {path} is not UTF-8 at byte {at}; convert it or leave it out') from e
  except OSError as e:
    raise UserError(f'{flag}: {path} cannot be read ({e.strerror})') from e


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
  pairs=pairs,
  tokens=tokens,
  synthetic=synthetic,
)
