"""Streams of tokens as files that grow text by text, and are memory-mapped ever after."""

from __future__ import annotations

import array
import hashlib
from collections import Counter
from pathlib import Path
from typing import Self

import numpy as np

KEPT = 'held_out.txt'


class Stream:
  """A one-dimensional .npy file that grows document by document: 0 doc 0 doc … 0.

  counts: tokens; of the documents, bytes of UTF-8 and unknown tokens.
  """

  def __init__(self, folder: Path, name: str, dtype: type):
    self._file, self._dtype = open(folder / f'{name}.npy', 'wb'), np.dtype(dtype)  # noqa: SIM115
    self._hash = hashlib.sha256()
    self.counts = Counter(tokens=0, bytes=0, unknown_tokens=0)

  def __enter__(self) -> Self:
    self._header()
    self._append(np.zeros(1, self._dtype))
    return self

  def write(self, ids: np.ndarray, text: str, unknown: int) -> None:
    """Appends a document and its end."""
    self._append(np.append(ids, 0).astype(self._dtype))
    self.counts.update(bytes=len(text.encode()), unknown_tokens=unknown)

  def __exit__(self, *exc: object) -> None:
    self._file.seek(0)
    self._header()  # as long as before: NumPy leaves room for the first axis to grow
    self._file.close()
    self.digest = self._hash.hexdigest()

  def _append(self, tokens: np.ndarray) -> None:
    self._hash.update(tokens.tobytes())
    self._file.write(tokens.tobytes())
    self.counts['tokens'] += len(tokens)

  def _header(self) -> None:
    descr = np.lib.format.dtype_to_descr(self._dtype)
    header = dict(descr=descr, fortran_order=False, shape=(self.counts['tokens'],))
    np.lib.format.write_array_header_1_0(self._file, header)


class PairStream(Stream):
  """The same of texts that are sources and targets by turns.

  `{name}_ends.npy` are the places of all tokens 0, the first and one after each text, and
  `{name}_bytes.npy` the texts' sizes. Those of `held_out` are kept, joined in `KEPT`.
  """

  def __init__(self, folder: Path, name: str, dtype: type):
    super().__init__(folder, name, dtype)
    self._at = folder / name
    self._texts = open(folder / KEPT, 'wb') if name == 'held_out' else None  # noqa: SIM115
    self._ends, self._bytes = array.array('q', [0]), array.array('q')

  def write(self, ids: np.ndarray, text: str, unknown: int) -> None:
    """Appends a text and its end."""
    super().write(ids, text, unknown)
    written = text.encode()
    self._ends.append(self.counts['tokens'] - 1)
    self._bytes.append(len(written))
    if self._texts:
      self._texts.write(written)

  def __exit__(self, *exc: object) -> None:
    super().__exit__(*exc)
    if self._texts:
      self._texts.close()
    np.save(f'{self._at}_ends.npy', np.array(self._ends))
    np.save(f'{self._at}_bytes.npy', np.array(self._bytes))


def mapped(folder: Path, name: str) -> np.ndarray:
  """What was written under this name, memory-mapped."""
  return np.load(folder / f'{name}.npy', mmap_mode='r', allow_pickle=False).view(np.ndarray)
