"""Names, order and staleness of cells; files that are whole or absent."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launch_fakes import ROOT, make_cells

from launch.cells import Cell, Claim, by_program, code_digest, stale, write_config
from launch.files import read_json, tail, write_json
from launch.machine import Seat, crowded, rows_of, schedulable_cores, seats
from transformer import count
from transformer.config import Config, config_hash, resolve
from transformer.errors import UserError


@pytest.mark.parametrize(
  ('name', 'readable'),
  [
    ('relu-seed0', 'relu-seed0'),
    ('tfds:lm1b/θ x', 'tfds_lm1b_x'),
    ('--help', 'help'),
    ('../../x', '_.._x'),
    ('', 'cell'),
    ('y' * 300, 'y' * 80),
  ],
)
def test_folder_names_are_safe(name: str, readable: str) -> None:
  config = resolve(Config())
  assert Cell(name, 'v', config).folder_name == f'{readable}-{config_hash(config)}'


def test_cells_of_one_program_are_side_by_side_and_once() -> None:
  relu, gelu = (resolve(Config().replace(**{'ffn.activation': a})) for a in ('relu', 'gelu'))
  made = [
    Cell(f'{n}{seed}', n, config.replace(seed=seed))
    for seed in (0, 1)
    for n, config in (('r', relu), ('g', gelu))
  ]
  assert [c.name for c in by_program([*made, made[0]])] == ['r0', 'r1', 'g0', 'g1']
  assert [c.seed for c in made] == [0, 0, 1, 1]


def test_stale_cells_were_made_by_other_code_or_data(tmp_path: Path) -> None:
  cells = make_cells('same', 'code', 'data', 'todo')
  for cell in cells:
    write_config(cell, tmp_path)
  for cell, done in zip(
    cells,
    [
      {'code': code_digest(cells[0].config), 'data': 'd'},
      {'code': 'other', 'data': 'd'},
      {'code': code_digest(cells[2].config), 'data': 'other'},
    ],
    strict=False,
  ):
    Claim.acquire(cell.folder(tmp_path)).commit(done)
  assert [c.name for c in stale(cells, tmp_path, 'd')] == ['code', 'data']
  by_cell = {0: 'd', 1: 'd', 2: 'other', 3: ''}
  assert [c.name for c in stale(cells, tmp_path, lambda c: by_cell[c.seed])] == ['code']
  path = cells[0].folder(tmp_path) / 'done.json'
  path.write_text('{')
  with pytest.raises(UserError) as e:
    stale(cells, tmp_path, 'd')
  assert str(e.value) == f'{path}: not a JSON object; delete the file to compute it again'


def test_a_failed_write_leaves_the_old_file_and_names_it(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  path = tmp_path / 'a.json'
  write_json(path, {'a': 1})

  def full(fd: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(OSError, match='No space left') as e:
    write_json(path, {'a': 2})
  assert e.value.filename == str(path)
  assert read_json(path) == {'a': 1}
  assert [p.name for p in tmp_path.iterdir()] == ['a.json']


def test_tail_starts_where_told(tmp_path: Path) -> None:
  path = tmp_path / 'log'
  path.write_text('old\nnew 1\nnew 2\n')
  assert tail(path, start=4) == 'new 1\nnew 2'
  assert tail(path, lines=1) == 'new 2'
  assert tail(tmp_path / 'none') == ''


def test_importing_the_launch_room_does_not_import_jax() -> None:
  code = (
    'import sys, launch.local, launch.worker; print({"jax", "flax", "rich"} & set(sys.modules))'
  )
  env = {**os.environ, 'PYTHONPATH': str(ROOT)}
  said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env)
  assert said.stdout == 'set()\n', said.stderr


def test_seats(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr('launch.machine._cores', lambda: [0, 1, 2, 5])
  monkeypatch.setattr('launch.machine._granted', lambda: None)
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  assert seats(0, 1) == [Seat()]
  assert seats(1, 9) == [Seat()]
  assert seats(0, 9) == [Seat((c,), True) for c in (0, 1, 2, 5)]
  assert seats(2, 9) == [Seat((0, 1), False), Seat((2, 5), False)]
  assert seats(3, 9) == [Seat((c,), True) for c in (0, 1, 2)]
  assert seats(5, 9) == [Seat((), True)] * 5
  monkeypatch.setattr('launch.machine._granted', lambda: 2)  # any two of the four: no pinning
  assert seats(0, 9) == [Seat((), True)] * 2
  assert seats(1, 9) == [Seat()]


def test_a_lone_worker_on_cpu_has_a_device_a_core_that_divides_the_rows(
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  monkeypatch.setattr('launch.machine._cores', lambda: [0, 1, 2, 5])
  monkeypatch.setattr('launch.machine._granted', lambda: None)
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  monkeypatch.setenv('XLA_FLAGS', '')
  assert [seats(1, 9, rows=n)[0].parts for n in (1, 2, 6, 8, 9)] == [1, 2, 3, 4, 3]
  assert {seat.parts for seat in seats(0, 9, rows=8)} == {1}
  flags = seats(1, 9, rows=8)[0].environment()['XLA_FLAGS']
  assert '--xla_force_host_platform_device_count=4' in flags
  assert '--xla_cpu_multi_thread_eigen=false' in flags
  monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=3')  # theirs stays
  assert seats(1, 9, rows=8)[0].environment()['XLA_FLAGS'].count('device_count') == 1


def test_a_state_a_core_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
  """1,000 parameters have 16 kB of state with AdamW's moments and the gradient."""
  config = resolve(Config().replace(**{'data.source': 'synthetic', 'data.batch_size': 12}))
  monkeypatch.setattr('launch.machine.schedulable_cores', lambda: [0, 1, 2])
  enough = 4 * 3 * 16 * count.params(config)
  monkeypatch.setattr('launch.machine._memory', lambda: enough)
  assert rows_of([config]) == 12
  assert rows_of([config, config.replace(**{'train.accumulate': 3})]) == 4
  assert rows_of([config, config.replace(**{'parallel.mode': 'pmap'})]) == 1
  monkeypatch.setattr('launch.machine._memory', lambda: enough - 1)
  assert rows_of([config]) == 1


def test_slurm_grants_cores(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr('launch.machine._cores', lambda: [0, 1, 2, 5])
  monkeypatch.setenv('SLURM_CPUS_ON_NODE', '1')
  assert (schedulable_cores(), crowded()) == ([0], True)
  monkeypatch.setenv('SLURM_CPUS_ON_NODE', '4')
  assert len(schedulable_cores()) <= 4


def test_a_seat_adds_to_the_flags_that_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setenv('XLA_FLAGS', '--xla_mine=1')
  env = Seat((0,), True).environment()
  assert env['XLA_FLAGS'] == '--xla_mine=1 --xla_cpu_multi_thread_eigen=false'
  assert env['OMP_NUM_THREADS'] == '1'
  assert Seat().environment()['XLA_FLAGS'] == '--xla_mine=1'
  assert set(schedulable_cores()) <= os.sched_getaffinity(0)


def test_a_cell_left_over_is_continued_on_the_kind_of_seat_it_began_on(
  monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
  """One thread or several sum in another order, so a last cell may not get the whole machine."""
  from launch import local

  seen = []

  class Stop(Exception):
    pass

  def pool(workdir, places, *_):
    seen.append(places)
    raise Stop

  monkeypatch.setattr(local, 'Pool', pool)
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  cells = make_cells(*'abc')
  for cell in cells[:2]:
    cell.folder(tmp_path).mkdir(parents=True)
    (cell.folder(tmp_path) / 'done.json').write_text('{"token": ""}')
  with pytest.raises(Stop):
    local.run(tmp_path, cells, workers=0)
  assert seen == [seats(0, 3)[:1]]
