"""Cells as Indexed Jobs of Kubernetes, built as data and handed to kubectl as YAML.

One Job has all tasks, an index each. Where several hosts run a cell together (--launch.nodes, or a
slice of TPUs) each task is a Job of its own whose indices are ranks, and a headless Service lets
them find the first. No value goes through a shell, and no `$(NAME)` in one is expanded.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os

from launch import shares
from launch.job import Job
from launch.shares import Shares, command, line, matching
from launch.task import FAILED
from launch.worker import STOPPED
from transformer.config import LaunchConfig
from transformer.errors import UserError

READ = (
  *shares.READ,
  *('image', 'namespace', 'volume', 'selector', 'tpu', 'tpu_topology', 'tpus'),
)
_WHERE = 'install kubectl, and let it reach the cluster'
_NAME = r'[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?'  # RFC 1123, as of namespaces and claims
_LABEL = r'([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?'
_KEY = rf'({_NAME}(\.{_NAME})*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?'
_GKE = 'cloud.google.com'
_PORT = 8476  # where the first of several hosts listens
_KEPT = 7 * 24 * 3600  # seconds that Kubernetes remembers a Job that has ended
_MARK = 'isoffn.submission'  # label of all that belongs to a submission
_JOB = 'isoffn.job'  # label of the pods of a Job


def plan(job: Job) -> str:
  """The manifests that `submit` would apply. Raises UserError for bad values."""
  dealt = _deal(job)
  later = f'# then: python -m experiments.report --workdir={dealt.workdir}\n' if job.report else ''
  return _yaml(manifests(dealt)) + later


def submit(job: Job) -> dict:
  """Applies a job's manifests, unless they are there already. Returns the record of it.

  Raises UserError if kubectl is not here, or the cluster refuses.
  """
  dealt = _deal(job)
  made, namespace = manifests(dealt), dealt.launch.namespace
  text = _yaml(made)
  _kubectl(namespace, 'apply', '--dry-run=server', '--filename=-', given=text)
  shares.write(dealt)
  record = {'name': dealt.name, 'namespace': namespace, 'cells': dealt.cells}
  record['together'] = dealt.launch.nodes > 1
  if set(states(record).values()) == {'gone'}:
    _delete(record, wait=True)  # of an earlier time: the same name would be taken for done
  _kubectl(namespace, 'apply', '--filename=-', given=text)
  return record


def states(record: dict) -> dict[str, str]:
  """Cell -> 'waiting', 'running' or 'gone', as its task is."""
  jobs = {job['metadata']['name']: job for job in _get(record, 'jobs')}
  pods = _get(record, 'pods')
  found = {}
  for task, cells in enumerate(record['cells']):
    name, index = (
      (record['name'], task) if not record['together'] else (_of(record['name'], task), None)
    )
    if name not in jobs or _over(jobs[name], index):
      kind = 'gone'
    else:
      kind = 'running' if any(_at_work(pod, name, index) for pod in pods) else 'waiting'
    found |= dict.fromkeys(cells, kind)
  return found


def cancel(record: dict) -> None:
  """Deletes all of a submission. Running cells get SIGTERM, and --launch.grace to save state."""
  _delete(record, wait=False)


def manifests(dealt: Shares) -> list[dict]:
  """The Service, if hosts work together, and the Jobs. Raises UserError for bad values."""
  hosts = dealt.launch.nodes
  if hosts == 1:
    return [_job(dealt, dealt.name, len(dealt.cells), '$(JOB_COMPLETION_INDEX)')]
  tasks = range(len(dealt.cells))
  return [_service(dealt), *(_job(dealt, _of(dealt.name, i), hosts, str(i)) for i in tasks)]


def _deal(job: Job) -> Shares:
  """A job's cells by task, `nodes` being the hosts that run each together."""
  needed = {'image': 'the name of an image', 'volume': 'the claim where pods find --workdir'}
  if missing := [name for name in needed if not getattr(job.launch, name)]:
    flags = ', '.join(f'--launch.{name}' for name in missing)
    raise UserError(f'{flags}: give {" and ".join(needed[name] for name in missing)}')
  hosts = _hosts(job.launch)
  if hosts > 1 and job.launch.throttle:
    raise UserError(
      f'--launch.throttle={job.launch.throttle}: is not for cells of {hosts} hosts each on '
      'Kubernetes, which knows of no limit over several Jobs; leave it out'
    )
  launch = dataclasses.replace(job.launch, nodes=hosts)
  return shares.deal(dataclasses.replace(job, launch=launch))


def _service(dealt: Shares) -> dict:
  """Headless: it only gives the hosts of a Job names, before they are ready, too."""
  spec = {
    'clusterIP': 'None',
    'publishNotReadyAddresses': True,
    'selector': {_MARK: dealt.name},
    'ports': [{'name': 'coordinator', 'port': _PORT}],
  }
  return _object('v1', 'Service', dealt, dealt.name, spec)


def _job(dealt: Shares, name: str, indices: int, task: str) -> dict:
  """A Job of so many indices: tasks, or the hosts of one. task: index of the task."""
  launch, alone = dealt.launch, dealt.launch.nodes == 1
  labels = {_MARK: dealt.name, _JOB: name}
  spec = {
    'completionMode': 'Indexed',
    'completions': indices,
    'parallelism': min(launch.throttle or indices, indices),
    'ttlSecondsAfterFinished': _KEPT,
    'podFailurePolicy': {'rules': _rules(alone)},
    'template': {'metadata': {'labels': labels}, 'spec': _pod(dealt, name, task)},
  }
  if alone:  # an index that fails leaves the others
    spec |= {'backoffLimitPerIndex': launch.retries, 'maxFailedIndexes': indices}
  else:  # hosts fail together
    spec['backoffLimit'] = (launch.retries + 1) * indices - 1
  return _object('batch/v1', 'Job', dealt, name, spec)


def _rules(alone: bool) -> list[dict]:
  """What a pod's end means: evictions do not count; what trying again cannot mend is not tried."""
  moved = [{'type': 'DisruptionTarget', 'status': 'True'}]
  hopeless = {'containerName': 'task', 'operator': 'In', 'values': [FAILED]}
  # Of hosts that work together the others end with one; the first one counts its tries itself.
  stopped = {'containerName': 'task', 'operator': 'In', 'values': [STOPPED]}
  return [
    {'action': 'Ignore', 'onPodConditions': moved},
    *([] if alone else [{'action': 'Ignore', 'onExitCodes': stopped}]),
    {'action': 'FailIndex' if alone else 'FailJob', 'onExitCodes': hopeless},
  ]


def _pod(dealt: Shares, name: str, task: str) -> dict:
  launch, together = dealt.launch, dealt.launch.nodes > 1
  environment = {
    'PYTHONSAFEPATH': '1',
    'PYTHONPATH': str(dealt.code),
    'ISOFFN_CACHE': str(dealt.workdir / 'cache'),
    'HOME': '/tmp',
  }
  if together:
    environment['JAX_COORDINATOR_ADDRESS'] = f'{name}-0.{dealt.name}:{_PORT}'
    environment['JAX_NUM_PROCESSES'] = str(launch.nodes)
  image = r'[A-Za-z0-9][A-Za-z0-9_.:/@-]*'
  volume, mount = _volume(dealt)
  container = {
    'name': 'task',
    'image': matching(launch.image, image, '--launch.image', 'the name of an image'),
    'command': ['python', *map(_literal, dealt.task()), f'--index={task}'],
    'env': [{'name': k, 'value': _literal(v)} for k, v in environment.items()],
    # What Pod Security asks for at its strictest; without the first, the server only warns.
    'securityContext': {
      'allowPrivilegeEscalation': False,
      'capabilities': {'drop': ['ALL']},
      'runAsNonRoot': os.getuid() != 0,
      'seccompProfile': {'type': 'RuntimeDefault'},
    },
    'volumeMounts': [mount, {'name': 'shared', 'mountPath': '/dev/shm'}],
    **_resources(launch),
  }
  me = {'runAsUser': os.getuid(), 'runAsGroup': os.getgid(), 'fsGroup': os.getgid()}
  return {
    'restartPolicy': 'Never',
    'terminationGracePeriodSeconds': launch.grace,
    'securityContext': me,  # so that files in the run's folder stay ours
    **({'subdomain': dealt.name} if together else {}),
    **_nodes(launch, name),
    'containers': [container],
    # GPUs of a host talk by way of it; 64 MB, as it would be, are not enough for several.
    'volumes': [volume, {'name': 'shared', 'emptyDir': {'medium': 'Memory'}}],
  }


def _volume(dealt: Shares) -> tuple[dict, dict]:
  """The volume, and where the container has it: at the run's folder."""
  claim, _, folder = dealt.launch.volume.partition(':')
  right = "a volume claim's name, or claim:folder, for pods to find --workdir in"
  matching(claim, rf'{_NAME}(\.{_NAME})*', '--launch.volume', right)
  mount = {'name': 'runs', 'mountPath': str(dealt.workdir)}
  if folder:
    mount['subPath'] = line(folder, '--launch.volume')
  return {'name': 'runs', 'persistentVolumeClaim': {'claimName': claim}}, mount


def _resources(launch: LaunchConfig) -> dict:
  """What a host gives; asked for and allowed alike, so that no neighbour takes it."""
  if launch.gpus and launch.tpu:
    raise UserError(f'--launch.gpus={launch.gpus}: a slice of --launch.tpu={launch.tpu} has none')
  asked: dict[str, str] = {}
  if launch.cpus:
    asked['cpu'] = str(launch.cpus)
  if launch.memory:
    asked['memory'] = f'{shares.memory(launch)}i'
  if launch.gpus:
    asked['nvidia.com/gpu'] = str(launch.gpus)
  if launch.tpu:
    asked['google.com/tpu'] = str(launch.tpus)
  return {'resources': {'requests': asked, 'limits': dict(asked)}} if asked else {}


def _nodes(launch: LaunchConfig, name: str) -> dict:
  """Which nodes pods go to: by label, past the taints of those with accelerators, a slice a Job."""
  labels = {}
  for part in filter(None, launch.selector.split(',')):
    right = "labels, as in 'gpu=h200,zone=a'"
    matching(part, rf'{_KEY}={_LABEL}', '--launch.selector', right)
    key, _, value = part.partition('=')
    labels[key] = value
  if launch.tpu:
    right = "a kind of slice, as in 'tpu-v5p-slice'"
    labels[f'{_GKE}/gke-tpu-accelerator'] = matching(launch.tpu, _NAME, '--launch.tpu', right)
    labels[f'{_GKE}/gke-tpu-topology'] = launch.tpu_topology
  kinds = ['nvidia.com/gpu'] * bool(launch.gpus) + ['google.com/tpu'] * bool(launch.tpu)
  tolerated = [{'key': k, 'operator': 'Exists', 'effect': 'NoSchedule'} for k in kinds]
  slices = {}
  if launch.tpu and launch.nodes > 1:
    mine, others = ([{'key': _JOB, 'operator': op, 'values': [name]}] for op in ('In', 'NotIn'))
    others.append({'key': _JOB, 'operator': 'Exists'})
    pool, required = f'{_GKE}/gke-nodepool', 'requiredDuringSchedulingIgnoredDuringExecution'
    for kind, terms in (('podAffinity', mine), ('podAntiAffinity', others)):
      term = {'labelSelector': {'matchExpressions': terms}, 'topologyKey': pool}
      slices[kind] = {required: [term]}
  found = {'nodeSelector': labels, 'tolerations': tolerated, 'affinity': slices}
  return {key: value for key, value in found.items() if value}


def _hosts(launch: LaunchConfig) -> int:
  """Hosts that run a cell together: of a slice of TPUs, as many as its topology has."""
  if bool(launch.tpu) != bool(launch.tpu_topology):
    raise UserError(
      f'--launch.tpu_topology={launch.tpu_topology}: goes with --launch.tpu={launch.tpu}; '
      "give both, as in 'tpu-v5p-slice' and '2x2x4'"
    )
  if not launch.tpu:
    return launch.nodes
  right = "chips along each side, as in '2x2x4'"
  matching(launch.tpu_topology, r'[1-9]\d*(x[1-9]\d*){1,2}', '--launch.tpu_topology', right)
  chips = math.prod(int(side) for side in launch.tpu_topology.split('x'))
  if chips % launch.tpus:
    raise UserError(
      f'--launch.tpu_topology={launch.tpu_topology}: {chips} chips are not a multiple of '
      f'--launch.tpus={launch.tpus} a host'
    )
  if launch.nodes not in (1, chips // launch.tpus):
    raise UserError(
      f'--launch.nodes={launch.nodes}: a slice of {launch.tpu_topology} with --launch.tpus='
      f'{launch.tpus} a host has {chips // launch.tpus}; leave it out'
    )
  return chips // launch.tpus


def _object(api: str, kind: str, dealt: Shares, name: str, spec: dict) -> dict:
  right = 'a name of lower-case letters, digits and -'
  namespace = matching(dealt.launch.namespace, _NAME, '--launch.namespace', right)
  metadata = {'name': name, 'namespace': namespace, 'labels': {_MARK: dealt.name}}
  return {'apiVersion': api, 'kind': kind, 'metadata': metadata, 'spec': spec}


def _literal(value: str) -> str:
  """A value in which Kubernetes expands nothing."""
  return value.replace('$', '$$')


def _yaml(made: list[dict]) -> str:
  try:
    import yaml
  except ImportError:
    raise UserError("--on=kubernetes: needs PyYAML; pip install 'isoffn[kubernetes]'") from None
  return yaml.safe_dump_all(made, sort_keys=False)


def _delete(record: dict, wait: bool) -> None:
  what = ['jobs,services', f'--selector={_MARK}={record["name"]}', '--ignore-not-found']
  _kubectl(
    record['namespace'], 'delete', *what, '--cascade=foreground', f'--wait={str(wait).lower()}'
  )


def _kubectl(namespace: str, *args: str, given: str = '') -> str:
  return command(['kubectl', f'--namespace={namespace}', *args], given, _WHERE)


def _get(record: dict, kind: str) -> list[dict]:
  """The objects of a submission."""
  selector = f'--selector={_MARK}={record["name"]}'
  return json.loads(_kubectl(record['namespace'], 'get', kind, selector, '--output=json'))['items']


def _of(name: str, task: int) -> str:
  """The Job of a task whose hosts work together, of a submission of that name."""
  return f'{name}-{task}'


def _at_work(pod: dict, name: str, index: int | None) -> bool:
  """Whether a pod of that Job, and of that index, runs."""
  told = pod['metadata'].get('annotations', {}).get('batch.kubernetes.io/job-completion-index')
  mine = pod['metadata']['labels'].get(_JOB) == name and index in (None, int(told or -1))
  return mine and pod.get('status', {}).get('phase') == 'Running'


def _over(job: dict, index: int | None) -> bool:
  """Whether a Job, or one of its indices, has ended well or for good."""
  status = job.get('status', {})
  ended = {c['type'] for c in status.get('conditions', []) if c.get('status') == 'True'}
  if ended & {'Complete', 'Failed'} or job['metadata'].get('deletionTimestamp'):
    return True
  lists = (status.get('completedIndexes', ''), status.get('failedIndexes', ''))
  return index is not None and any(_within(index, text) for text in lists)


def _within(index: int, ranges: str) -> bool:
  """Whether '0-2,5' has an index."""
  bounds = [part.split('-') for part in ranges.split(',') if part]
  return any(int(part[0]) <= index <= int(part[-1]) for part in bounds)
