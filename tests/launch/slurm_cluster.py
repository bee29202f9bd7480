"""A Slurm of two nodes on this machine, which tests start and stop themselves."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from launch_fakes import until

NEEDED = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'squeue', 'scontrol', 'scancel', 'srun')
NODES = ('alpha', 'beta')
_CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=10
SchedulerParameters=batch_sched_delay=0,sched_min_interval=50000
MaxArraySize=8
NodeName=alpha NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 State=UNKNOWN
NodeName=beta NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def absent() -> str:
  """Why there can be no cluster here; '' if there can."""
  if missing := [name for name in NEEDED if not shutil.which(name)]:
    return f'needs Slurm (apt-get install slurm-wlm munge): there is no {missing[0]}'
  return '' if os.geteuid() == 0 else 'needs root, to start the daemons of Slurm'


class Absent(Exception):
  """The daemons do not come up on this machine."""


class Cluster:
  """Two nodes of two cores."""

  def __init__(self, folder: Path):
    self._folder = folder
    self._daemons: dict[str, subprocess.Popen] = {}
    self.config = folder / 'slurm.conf'

  def start(self) -> None:
    """Starts all daemons. Raises Absent, and leaves none, where they do not come up."""
    key, folder = self._folder / 'munge.key', self._folder
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    (folder / 'state').mkdir()
    host = socket.gethostname().partition('.')[0]
    self.config.write_text(_CONFIG.format(host=host, folder=folder, ports=free_ports(3)))
    try:
      names = {'key-file': 'key', 'socket': 'sock', 'pid-file': 'pid', 'seed-file': 'seed'}
      options = [f'--{name}={folder}/munge.{end}' for name, end in names.items()]
      self._start(
        'munged',
        '--foreground',
        '--force',
        '--num-threads=10',
        *options,
        f'--log-file={folder}/munge.log',
      )
      until(lambda: (folder / 'munge.sock').exists(), 120)
      self._start('slurmctld', '-D')
      for node in NODES:
        self._start(f'slurmd-{node}', '-D', '-N', node)
      until(self._is_up, 120)
    except AssertionError:
      self.close()
      raise Absent(f'Slurm is installed but does not start here: {self._errors()}') from None
    except BaseException:
      self.close()
      raise

  def _is_up(self) -> bool:
    assert all(daemon.poll() is None for daemon in self._daemons.values())
    return self.run('sinfo', '-h', '-o', '%D %T') == '2 idle'

  def close(self) -> None:
    """Ends them."""
    for daemon in reversed(self._daemons.values()):
      daemon.terminate()
    for daemon in self._daemons.values():
      try:
        daemon.wait(10)
      except subprocess.TimeoutExpired:
        daemon.kill()

  def run(self, *args: str) -> str:
    """Output of one of Slurm's commands; '' if it fails, or gets no answer."""
    try:
      done = subprocess.run(args, capture_output=True, text=True, env=self._env(), timeout=20)
    except subprocess.TimeoutExpired:
      return ''
    return done.stdout.strip()

  def node_of(self, task: str) -> str:
    """The node that a task ('12_0') is on; '' if it is on none."""
    return self.run('squeue', '-h', '-r', '-j', task, '-t', 'R', '-o', '%N')

  def start_again(self, task: str) -> None:
    """Waits until a requeued task runs, sparing it most of the two minutes that Slurm waits."""

    def told() -> str:
      return self.run('squeue', '-h', '-r', '-j', task, '-o', '%T')

    def runs() -> bool:
      self.run('scontrol', 'update', f'JobId={task}', 'StartTime=now')
      return told() == 'RUNNING'

    until(lambda: told() == 'PENDING', 120)
    time.sleep(2.5)  # within a second or two its node takes it for the one that was just ended
    until(runs, 120)

  def kill(self, node: str) -> None:
    """A node dies, with all that runs on it; then Slurm is told, which would notice in minutes."""
    self._daemons[f'slurmd-{node}'].kill()
    mine = f'SLURM_CONF={self.config}\0'.encode()
    for path in Path('/proc').glob('[0-9]*/environ'):
      with contextlib.suppress(OSError):
        env, name = path.read_bytes(), path.with_name('comm').read_text().strip()
        if mine in env and (name == 'slurmstepd' or f'SLURMD_NODENAME={node}\0'.encode() in env):
          os.kill(int(path.parent.name), signal.SIGKILL)
    self.run('scontrol', 'update', f'NodeName={node}', 'State=down', 'Reason=killed')

  def restore(self) -> None:
    """Starts nodes that were killed, opens those that were drained, empties the queue."""
    for node in NODES:
      if self._daemons[f'slurmd-{node}'].poll() is not None:
        self._start(f'slurmd-{node}', '-D', '-N', node)
      self.run('scontrol', 'update', f'NodeName={node}', 'State=RESUME')
    self.run('scancel', '--me')
    until(
      lambda: self.run('squeue', '-h') == '' and self.run('sinfo', '-h', '-o', '%D') == '2', 120
    )

  def _start(self, name: str, *args: str) -> None:
    with open(self._folder / f'{name}.log', 'wb') as log:
      command = [name.partition('-')[0], *args]
      self._daemons[name] = subprocess.Popen(command, stdout=log, stderr=log, env=self._env())

  def _env(self) -> dict[str, str]:
    return {**os.environ, 'SLURM_CONF': str(self.config)}

  def _errors(self) -> str:
    """The last complaint of each daemon."""
    found = []
    for path in sorted(self._folder.glob('*.log')):
      lines = [row for row in path.read_text().splitlines() if 'error' in row.lower()]
      found += [f'{path.stem}: {row}' for row in lines[-1:]]
    return '; '.join(found)


def free_ports(count: int) -> list[int]:
  """So many ports that nobody listens on."""
  sockets = [socket.socket() for _ in range(count)]
  try:
    for s in sockets:
      s.bind(('127.0.0.1', 0))
    return [s.getsockname()[1] for s in sockets]
  finally:
    for s in sockets:
      s.close()
