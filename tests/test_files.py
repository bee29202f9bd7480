"""Files and folders that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from transformer.errors import UserError
from transformer.files import appearing


def test_a_folder_appears_whole(tmp_path: Path) -> None:
  with appearing(tmp_path / 'a' / 'b') as folder:
    (folder / 'x').write_text('1')
    assert not (tmp_path / 'a' / 'b').exists()
  assert (tmp_path / 'a' / 'b' / 'x').read_text() == '1'
  assert [path.name for path in (tmp_path / 'a').iterdir()] == ['b']


def test_or_not_at_all(tmp_path: Path) -> None:
  with pytest.raises(KeyError), appearing(tmp_path / 'b') as folder:
    (folder / 'x').write_text('1')
    raise KeyError
  assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
  (tmp_path / 'b').mkdir()
  with appearing(tmp_path / 'b') as folder:
    (folder / 'x').write_text('1')
  assert (tmp_path / 'b' / 'x').exists()


def test_where_nothing_can_be_written() -> None:
  with pytest.raises(UserError) as e, appearing(Path('/proc/x'), 'out'):
    pass
  assert str(e.value) == '--out=/proc/x: cannot be written (No such file or directory)'


@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_what_is_there_stays(kind: str, tmp_path: Path) -> None:
  path = tmp_path / 'b'
  if kind == 'file':
    path.write_text('mine')
  else:
    path.mkdir()
    (path / 'x').write_text('mine')
  with pytest.raises(UserError) as e, appearing(path, 'out'):
    pass
  assert str(e.value) == (f'--out={path}: is there already; name a folder that is not, or is empty')
