"""Commands for TPU VMs: complete, quoted twice where two shells read them, and never run."""

from __future__ import annotations

import shlex

import pytest

from launch import tpu_vm

ASKED = {
  'name': 'lab',
  'zone': 'us-east5-a',
  'accelerator': 'v5p-32',
  'image': 'us-docker.pkg.dev/lab/isoffn:tpu',
  'workdir': '/mnt/x',
  'nfs': '10.0.0.2:/runs/x',
}


def _flags(**changes: str) -> list[str]:
  return [f'--{flag}={value}' for flag, value in (ASKED | changes).items()]


def test_what_is_printed_runs_the_command_on_all_hosts(capsys: pytest.CaptureFixture) -> None:
  source = "text:it's $HOME/*.txt"
  assert tpu_vm.main([*_flags(), '--', 'python', '-m', 'x', f'--data.source={source}']) == 0
  create, *ssh, delete = (shlex.split(row) for row in capsys.readouterr().out.splitlines())
  start = ['gcloud', 'compute', 'tpus', 'tpu-vm']
  assert create == [
    *(*start, 'create', 'lab', '--zone=us-east5-a'),
    *('--accelerator-type=v5p-32', '--version=v2-alpha-tpuv5'),
  ]
  assert delete == [*start, 'delete', 'lab', '--zone=us-east5-a', '--quiet']
  inner = []
  for words in ssh:
    assert words[:-1] == [*start, 'ssh', 'lab', '--zone=us-east5-a', '--worker=all']
    inner.append(shlex.split(words[-1].removeprefix('--command=')))
  assert inner[:3] == [
    ['sudo', 'mkdir', '-p', '/mnt/x'],
    ['sudo', 'mount', '-t', 'nfs', '10.0.0.2:/runs/x', '/mnt/x'],
    ['sudo', 'gcloud', 'auth', 'configure-docker', 'us-docker.pkg.dev', '--quiet'],
  ]
  assert inner[3][-8:] == [
    *('--volume=/mnt/x:/mnt/x', 'us-docker.pkg.dev/lab/isoffn:tpu', 'python', '-m', 'x'),
    *(f'--data.source={source}', '--workdir=/mnt/x', '--parallel.distributed=auto'),
  ]


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'name': 'my lab'}, "--name='my lab': should be lower-case letters, digits and -"),
    ({'zone': 'a;b'}, "--zone='a;b': should be a zone, as in 'us-east5-a'"),
    ({'accelerator': 'tpu'}, "--accelerator='tpu': should be a type and a size, as in 'v5p-32'"),
    ({'workdir': 'runs/x'}, "--workdir='runs/x': should be a whole path on the hosts"),
    ({'workdir': '/a\nb'}, "--workdir='/a\\nb': should be one line of plain text"),
    ({'nfs': 'here'}, "--nfs='here': should be a server and a folder, as in '10.0.0.2:/runs/x'"),
  ],
)
def test_values_that_cannot_be(changes: dict, said: str, capsys: pytest.CaptureFixture) -> None:
  assert tpu_vm.main([*_flags(**changes), '--', 'python']) == 2
  assert capsys.readouterr() == ('', f'error: {said}\n')


def test_without_a_command(capsys: pytest.CaptureFixture) -> None:
  assert tpu_vm.main(_flags()) == 2
  assert capsys.readouterr().err.startswith('error: --: is to be followed by what runs')
