"""Manifests that Kubernetes' own schemas accept, and what is asked of kubectl."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from launch_fakes import make_cells

from launch import kubernetes
from launch.cells import write_config
from launch.job import Job
from transformer.config import LaunchConfig
from transformer.errors import UserError

VERSION = (
  '1.31'  # of Kubernetes; the first in which pods that are retried index by index are default
)
CELLS = ('a-1', 'b-2', 'c-3')
GIVEN = {'image': 'registry.io/lab/isoffn:1', 'volume': 'runs-claim'}
SLICE = {'tpu': 'tpu-v5p-slice', 'tpu_topology': '2x2x2'}


def _plan(workdir: Path, cells: tuple[str, ...] = CELLS, **launch: object) -> list[dict]:
  text = kubernetes.plan(Job(workdir, cells, LaunchConfig(**GIVEN | launch), report=False))
  return list(yaml.safe_load_all(text))


def _pod(manifest: dict) -> dict:
  return manifest['spec']['template']['spec']


@pytest.mark.parametrize(
  'launch',
  [
    {},
    {'cpus': 4, 'memory': '16G', 'gpus': 8, 'throttle': 2, 'per_task': 2},
    {'nodes': 2, 'gpus': 8, 'selector': 'cloud.google.com/gke-accelerator=nvidia-h200,zone=a'},
    SLICE,
    {'tpu': 'tpu-v5-lite-podslice', 'tpu_topology': '2x2'},
  ],
)
def test_the_schemas_of_kubernetes_accept_every_manifest(workdir: Path, launch: dict) -> None:
  schemas = pytest.importorskip('kubernetes_validate')
  made = _plan(workdir, **launch)
  for manifest in made:
    schemas.validate(manifest, VERSION, strict=True)
  made[-1]['spec']['completion'] = 1
  with pytest.raises(schemas.ValidationError, match='completion'):
    schemas.validate(made[-1], VERSION, strict=True)


def test_each_task_is_an_index_of_one_job(workdir: Path) -> None:
  (job,) = _plan(workdir, per_task=2, throttle=1, retries=5, grace=30, gpus=1, memory='16G')
  spec = job['spec']
  assert (spec['completions'], spec['parallelism'], spec['backoffLimitPerIndex']) == (2, 1, 5)
  assert spec['podFailurePolicy']['rules'] == [
    {'action': 'Ignore', 'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}]},
    {
      'action': 'FailIndex',
      'onExitCodes': {'containerName': 'task', 'operator': 'In', 'values': [2]},
    },
  ]
  pod, name = _pod(job), job['metadata']['name']
  assert (pod['restartPolicy'], pod['terminationGracePeriodSeconds']) == ('Never', 30)
  (container,) = pod['containers']
  assert container['command'] == [
    *('python', '-m', 'launch.task', f'--shares={workdir}/tasks/{name}.json'),
    '--index=$(JOB_COMPLETION_INDEX)',
  ]
  assert container['resources']['limits'] == {'memory': '16Gi', 'nvidia.com/gpu': '1'}
  shared = {'name': 'shared', 'mountPath': '/dev/shm'}
  assert container['volumeMounts'] == [{'name': 'runs', 'mountPath': str(workdir)}, shared]
  assert not container['securityContext']['allowPrivilegeEscalation']
  environment = {e['name']: e['value'] for e in container['env']}
  assert environment['PYTHONPATH'].startswith(f'{workdir}/code/')
  assert 'JAX_NUM_PROCESSES' not in environment
  assert 'subdomain' not in pod


@pytest.mark.parametrize(('launch', 'hosts'), [({'nodes': 4}, 4), (SLICE, 2)])
def test_hosts_that_work_together_find_the_first_by_a_service(
  workdir: Path, launch: dict, hosts: int
) -> None:
  service, *jobs = _plan(workdir, **launch)
  name = service['metadata']['name']
  assert service['spec']['clusterIP'] == 'None'
  assert [job['metadata']['name'] for job in jobs] == [f'{name}-{i}' for i in range(3)]
  for i, job in enumerate(jobs):
    spec, pod = job['spec'], _pod(job)
    assert (spec['completions'], spec['parallelism'], pod['subdomain']) == (hosts, hosts, name)
    assert service['spec']['selector'].items() <= spec['template']['metadata']['labels'].items()
    (container,) = pod['containers']
    assert container['command'][-1] == f'--index={i}'
    environment = {e['name']: e['value'] for e in container['env']}
    assert environment['JAX_COORDINATOR_ADDRESS'] == f'{name}-{i}-0.{name}:8476'
    assert environment['JAX_NUM_PROCESSES'] == str(hosts)
    _, stopped, hopeless = spec['podFailurePolicy']['rules']
    assert (stopped['action'], stopped['onExitCodes']['values']) == ('Ignore', [75])
    assert (hopeless['action'], hopeless['onExitCodes']['values']) == ('FailJob', [2])
  assert ('nodeSelector' in _pod(jobs[0])) == (launch == SLICE)
  if launch == SLICE:
    assert _pod(jobs[0])['nodeSelector'] == {
      'cloud.google.com/gke-tpu-accelerator': 'tpu-v5p-slice',
      'cloud.google.com/gke-tpu-topology': '2x2x2',
    }
    assert container['resources']['limits'] == {'google.com/tpu': '4'}
    affinity = _pod(jobs[0])['affinity']
    assert affinity.keys() == {'podAffinity', 'podAntiAffinity'}  # a slice a Job


def test_values_are_data_and_nothing_in_them_is_expanded(workdir: Path) -> None:
  evil = workdir.with_name('a "b": $(HOME) {x}\'')
  (job,) = _plan(evil, volume='claim:$(sub)/x: y')
  (container,) = _pod(job)['containers']
  escaped = str(evil).replace('$', '$$')
  assert container['command'][3].startswith(f'--shares={escaped}/tasks/')
  mount = {'name': 'runs', 'mountPath': str(evil), 'subPath': '$(sub)/x: y'}
  assert container['volumeMounts'][0] == mount
  assert not evil.exists()


@pytest.mark.parametrize(
  ('launch', 'said'),
  [
    ({'image': ''}, '--launch.image: give the name of an image'),
    (
      {'image': '', 'volume': ''},
      '--launch.image, --launch.volume: give the name of an image and the claim where pods find ',
    ),
    ({'image': '-x y'}, "--launch.image='-x y': should be the name of an image"),
    (
      {'volume': '-'},
      "--launch.volume='-': should be a volume claim's name, or claim:",
    ),
    ({'namespace': 'My Lab'}, "--launch.namespace='My Lab': should be a name of lower-case "),
    ({'selector': 'gpu'}, "--launch.selector='gpu': should be labels, as in 'gpu=h200,zone=a'"),
    ({'selector': 'a=b c'}, "--launch.selector='a=b c': should be labels, as in "),
    ({'tpu': 'v5p'}, '--launch.tpu_topology=: goes with --launch.tpu=v5p; give both, as in '),
    (SLICE | {'tpu_topology': '2x'}, "--launch.tpu_topology='2x': should be chips along each "),
    (SLICE | {'tpus': 3}, '--launch.tpu_topology=2x2x2: 8 chips are not a multiple of --launch.'),
    (
      SLICE | {'nodes': 4},
      '--launch.nodes=4: a slice of 2x2x2 with --launch.tpus=4 a host has 2; ',
    ),
    (SLICE | {'gpus': 1}, '--launch.gpus=1: a slice of --launch.tpu=tpu-v5p-slice has none'),
    (
      SLICE | {'throttle': 1},
      '--launch.throttle=1: is not for cells of 2 hosts each on Kubernetes',
    ),
  ],
)
def test_values_that_cannot_be(workdir: Path, launch: dict, said: str) -> None:
  with pytest.raises(UserError) as e:
    _plan(workdir, **launch)
  assert str(e.value).startswith(said)


KUBECTL = """#!/bin/sh
echo "$*" >> {folder}/asked
case "$*" in
  *apply*) cat > {folder}/applied.yaml ;;
  *"get jobs"*) cat {folder}/jobs.json ;;
  *"get pods"*) cat {folder}/pods.json ;;
esac
"""


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
  """A folder with a kubectl that notes what it is asked and answers from files beside it."""
  script = tmp_path / 'bin' / 'kubectl'
  script.parent.mkdir()
  script.write_text(KUBECTL.format(folder=script.parent))
  script.chmod(0o755)
  monkeypatch.setenv('PATH', f'{script.parent}:/usr/bin:/bin')
  for kind in ('jobs', 'pods'):
    (script.parent / f'{kind}.json').write_text('{"items": []}')
  return script.parent


def _submit(workdir: Path, **launch: object) -> dict:
  cells = make_cells('a', 'b', 'c', 'd')
  for cell in cells:
    write_config(cell, workdir)
  names = tuple(cell.folder_name for cell in cells)
  config = LaunchConfig(**GIVEN | {'namespace': 'lab'} | launch)
  record = kubernetes.submit(Job(workdir, names, config, report=False))
  return json.loads(json.dumps(record))


def _answer(kubectl: Path, kind: str, *items: dict) -> None:
  (kubectl / f'{kind}.json').write_text(json.dumps({'items': items}))


def _item(name: str, status: dict, index: int = 0) -> dict:
  notes = {'batch.kubernetes.io/job-completion-index': str(index)}
  return {
    'metadata': {'name': name, 'labels': {'isoffn.job': name}, 'annotations': notes},
    'status': status,
  }


def test_what_is_submitted_followed_and_cancelled(workdir: Path, kubectl: Path) -> None:
  record = _submit(workdir)
  asked, name = (kubectl / 'asked').read_text().splitlines(), record['name']
  assert asked[0] == '--namespace=lab apply --dry-run=server --filename=-'
  assert asked[-2:] == [
    f'--namespace=lab delete jobs,services --selector=isoffn.submission={name} '
    '--ignore-not-found --cascade=foreground --wait=true',
    '--namespace=lab apply --filename=-',
  ]
  (job,) = yaml.safe_load_all((kubectl / 'applied.yaml').read_text())
  assert job['metadata']['name'] == name
  assert (workdir / 'tasks' / f'{name}.json').exists()
  (code,) = (workdir / 'code').iterdir()
  assert (code / 'launch' / 'task.py').exists()

  _answer(kubectl, 'jobs', _item(name, {'completedIndexes': '0', 'failedIndexes': '1'}))
  pods = [_item(name, {'phase': 'Running'}, 2), _item(name, {'phase': 'Pending'}, 3)]
  _answer(kubectl, 'pods', *pods, _item(name, {'phase': 'Failed'}, 1))
  states = kubernetes.states(record)
  assert [states[cell] for (cell,) in record['cells']] == ['gone', 'gone', 'running', 'waiting']
  assert _submit(workdir) == record  # at work: nothing is deleted
  assert (kubectl / 'asked').read_text().count('delete') == 1
  over = {'conditions': [{'type': 'Failed', 'status': 'True'}]}
  _answer(kubectl, 'jobs', _item(name, over))
  assert set(kubernetes.states(record).values()) == {'gone'}
  kubernetes.cancel(record)
  assert (kubectl / 'asked').read_text().endswith('--cascade=foreground --wait=false\n')


def test_states_of_cells_that_several_hosts_run(workdir: Path, kubectl: Path) -> None:
  record = _submit(workdir, nodes=2, per_task=2)
  first, second = (f'{record["name"]}-{i}' for i in (0, 1))
  _answer(kubectl, 'jobs', _item(first, {}), _item(second, {'completedIndexes': '0'}))
  _answer(kubectl, 'pods', _item(first, {'phase': 'Running'}, 1))
  assert list(kubernetes.states(record).values()) == ['running'] * 2 + ['waiting'] * 2
  assert list(kubernetes.states(record)) == [c for task in record['cells'] for c in task]
  _answer(kubectl, 'jobs', _item(first, {}))
  assert list(kubernetes.states(record).values()) == ['running'] * 2 + ['gone'] * 2


def test_a_cluster_that_refuses_is_one_line(workdir: Path, kubectl: Path) -> None:
  (kubectl / 'kubectl').write_text(
    '#!/bin/sh\necho one >&2\necho "error: no such claim" >&2\nexit 1'
  )
  with pytest.raises(UserError) as e:
    _submit(workdir)
  assert str(e.value) == 'error: no such claim'
  assert not (workdir / 'tasks').exists()
  (kubectl / 'kubectl').unlink()
  with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError) as e:
    patch.setenv('PATH', str(kubectl))
    _submit(workdir)
  assert str(e.value) == (
    'kubectl: no such command here; install kubectl, and let it reach the cluster'
  )


def _no_cluster() -> str:
  if not shutil.which('kubectl'):
    return 'no kubectl here'
  asked = ['kubectl', 'get', '--raw=/version', '--request-timeout=2s']
  answers = subprocess.run(asked, capture_output=True).returncode == 0
  return '' if answers else 'no cluster answers kubectl'


@pytest.mark.skipif(bool(_no_cluster()), reason=_no_cluster() or 'a cluster answers')
@pytest.mark.parametrize('launch', [{}, {'nodes': 2}, SLICE])
def test_the_server_accepts_every_manifest(workdir: Path, launch: dict) -> None:
  job = Job(workdir, CELLS, LaunchConfig(**GIVEN | launch), report=False)
  asked = ['kubectl', 'apply', '--dry-run=server', '--filename=-']
  done = subprocess.run(asked, input=kubernetes.plan(job), capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
