"""Accelerators are found without jax and dealt out, one a worker."""

from __future__ import annotations

import pytest

from launch.machine import Seat, seats
from transformer import hardware

EIGHT = [str(i) for i in range(8)]


def _visible(found: list[Seat], variable: str = 'CUDA_VISIBLE_DEVICES') -> list[str | None]:
  return [dict(seat.devices).get(variable) for seat in found]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
  """Makes device files appear: pattern -> how many."""
  for name in ('JAX_PLATFORMS', *(kind.variable for kind in hardware.KINDS)):
    monkeypatch.delenv(name, raising=False)

  def there(**files: int) -> None:
    known = {f'/dev/{name}[0-9]*': n for name, n in files.items()}
    monkeypatch.setattr(hardware.glob, 'glob', lambda pattern: ['file'] * known.get(pattern, 0))

  there()
  return there


def test_a_machine_without_any_runs_on_cpu(machine) -> None:
  assert hardware.kind() is None


def test_device_files_and_what_drives_them_are_both_needed(
  machine, monkeypatch: pytest.MonkeyPatch
) -> None:
  machine(nvidia=8)
  monkeypatch.setattr(hardware.importlib.metadata, 'entry_points', lambda group: [])
  assert hardware.kind() is None
  entry = type('Entry', (), {'name': 'xla_cuda13'})
  monkeypatch.setattr(hardware.importlib.metadata, 'entry_points', lambda group: [entry])
  assert hardware.kind().name == 'cuda'
  assert hardware.kind().devices() == EIGHT
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')
  assert hardware.kind() is None


def test_each_of_several_workers_has_a_device_of_its_own(
  machine, monkeypatch: pytest.MonkeyPatch
) -> None:
  machine(nvidia=8)
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda,cpu')
  assert _visible(seats(0, 100)) == EIGHT
  assert _visible(seats(0, 3)) == ['0', '1', '2']
  assert seats(0, 1) == [Seat()]  # alone it has them all
  assert seats(1, 9) == [Seat()]
  assert _visible(seats(0, 100, each=4)) == ['0,1,2,3', '4,5,6,7']
  assert not any('XLA_PYTHON_CLIENT_MEM_FRACTION' in dict(s.devices) for s in seats(0, 100))


def test_more_workers_than_devices_share_them_and_their_memory(
  machine, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', 'GPU-a, GPU-b')  # as a cluster grants them
  found = seats(4, 9)
  assert _visible(found) == ['GPU-a', 'GPU-b', 'GPU-a', 'GPU-b']
  assert {dict(s.devices)['XLA_PYTHON_CLIENT_MEM_FRACTION'] for s in found} == {'0.450'}
  assert found[1].environment()['CUDA_VISIBLE_DEVICES'] == 'GPU-b'


def test_a_chip_of_a_tpu_host_is_told_its_bounds(machine, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setenv('JAX_PLATFORMS', 'tpu')
  monkeypatch.setenv('TPU_VISIBLE_CHIPS', '0,1,2,3')
  found = seats(0, 9)
  assert _visible(found, 'TPU_VISIBLE_CHIPS') == ['0', '1', '2', '3']
  assert {dict(s.devices)['TPU_CHIPS_PER_PROCESS_BOUNDS'] for s in found} == {'1,1,1'}
