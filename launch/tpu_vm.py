"""Prints the commands that run an experiment on all hosts of a Cloud TPU VM. Runs none of them.

  python -m launch.tpu_vm --name=lab --zone=us-east5-a --accelerator=v5p-32 \\
    --image=us-docker.pkg.dev/lab/isoffn:tpu --nfs=10.0.0.2:/runs/x --workdir=/mnt/x \\
    -- python -m experiments.train --preset=bench

Every host runs the command in a container of the image (launch/docker), with --workdir and
--parallel.distributed=auto added. Several hosts need one folder: --nfs says where it is. After an
interruption the `ssh … docker run` line again continues.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from launch.shares import line, matching
from transformer.errors import UserError

_RUNTIMES = {  # beginning of an accelerator's type -> the image its machines start from
  'v5p': 'v2-alpha-tpuv5',
  'v5lite': 'v2-alpha-tpuv5-lite',
  'v6e': 'v2-alpha-tpuv6e',
}
_ANY = 'tpu-ubuntu2204-base'
_RULES = {  # flag -> what its value must match, and what that is in words
  'name': (r'[a-z]([-a-z0-9]{0,61}[a-z0-9])?', 'lower-case letters, digits and -'),
  'zone': (r'[a-z]+-[a-z]+\d+-[a-z]', "a zone, as in 'us-east5-a'"),
  'accelerator': (r'v\d+[a-z]*-\d+', "a type and a size, as in 'v5p-32'"),
  'image': (r'[A-Za-z0-9][A-Za-z0-9_.:/@-]*', 'the name of an image'),
  'workdir': (r'/[^,:]+', 'a whole path on the hosts'),
  'nfs': (r'([A-Za-z0-9.-]+:/.*)?', "a server and a folder, as in '10.0.0.2:/runs/x'"),
}


def script(asked: dict[str, str], command: Sequence[str]) -> str:
  """The commands, a line each. asked: the flags of `_RULES`. Raises UserError for bad values."""
  for flag, (pattern, right) in _RULES.items():
    matching(line(asked[flag], f'--{flag}'), pattern, f'--{flag}', right)
  if not command:
    raise UserError('--: is to be followed by what runs, as in -- python -m experiments.train')
  name, workdir, image = asked['name'], asked['workdir'], asked['image']
  begun = (v for k, v in _RUNTIMES.items() if asked['accelerator'].startswith(k))
  kind = [f'--accelerator-type={asked["accelerator"]}', f'--version={next(begun, _ANY)}']
  more = [f'--workdir={workdir}', '--parallel.distributed=auto']
  container = ['sudo', 'docker', 'run', '--rm', '--privileged', '--network=host', '--user=0']
  container += [f'--volume={workdir}:{workdir}', image, *command, *more]
  steps = [['sudo', 'mkdir', '-p', workdir]]
  steps += [['sudo', 'mount', '-t', 'nfs', asked['nfs'], workdir]] * bool(asked['nfs'])
  registry = image.partition('/')[0]
  if registry.endswith('docker.pkg.dev'):
    steps += [['sudo', 'gcloud', 'auth', 'configure-docker', registry, '--quiet']]

  def tpu(verb: str, *args: str) -> str:
    return shlex.join(['gcloud', 'compute', 'tpus', 'tpu-vm', verb, name, *args])

  zone = f'--zone={asked["zone"]}'
  everywhere = [
    tpu('ssh', zone, '--worker=all', f'--command={shlex.join(step)}')
    for step in (*steps, container)
  ]
  return '\n'.join([tpu('create', zone, *kind), *everywhere, tpu('delete', zone, '--quiet')])


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for flag, (_, right) in _RULES.items():
    parser.add_argument(f'--{flag}', required=flag != 'nfs', default='', help=right)
  parser.add_argument('command', nargs=argparse.REMAINDER, help='after --: what every host runs')
  asked = vars(parser.parse_args(argv))
  command = asked.pop('command')
  try:
    print(script(asked, command[1:] if command[:1] == ['--'] else command))
  except UserError as e:
    print(f'error: {e}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
