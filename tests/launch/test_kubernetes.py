"""kubernetes.yaml is valid by the schemas of JobSet and Job, and knows main.py's exit statuses."""

import re
import subprocess

import pytest
import yaml
from helpers.launchers import LAUNCH


class StrictLoader(yaml.SafeLoader):
    """Refuses a key that is given twice, as Kubernetes does."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f'a key twice: {keys}'
        return super().construct_mapping(node, deep)


JOBSET = {  # jobset.x-k8s.io/v1alpha2; a list holds one alternative, a set the values that may be
    'apiVersion': {'jobset.x-k8s.io/v1alpha2'},
    'kind': {'JobSet'},
    'metadata': {'name': str, 'labels': dict, 'annotations': dict, 'namespace': str},
    'spec': {
        'network': {'enableDNSHostnames': bool, 'subdomain': str, 'publishNotReadyAddresses': bool},
        'failurePolicy': {
            'maxRestarts': int,
            'restartStrategy': {'Recreate', 'BlockingRecreate', 'InPlaceRestart'},
            'rules': [
                {
                    'name': re.compile('[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?'),
                    'action': {'FailJobSet', 'RestartJobSet', 'RestartJobSetAndIgnoreMaxRestarts'},
                    'onJobFailureReasons': [
                        {
                            'BackoffLimitExceeded',
                            'DeadlineExceeded',
                            'FailedIndexes',
                            'MaxFailedIndexesExceeded',
                            'PodFailurePolicy',
                        }
                    ],
                    'targetReplicatedJobs': [str],
                }
            ],
        },
        'successPolicy': {'operator': {'All', 'Any'}, 'targetReplicatedJobs': [str]},
        'suspend': bool,
        'coordinator': {'replicatedJob': str, 'jobIndex': int, 'podIndex': int},
        'managedBy': str,
        'ttlSecondsAfterFinished': int,
        'replicatedJobs': [
            {
                'name': re.compile('[a-z]([a-z0-9-]*[a-z0-9])?'),
                'groupName': str,
                'replicas': int,
                'template': {'metadata': dict, 'spec': dict},
                'dependsOn': list,
            }
        ],
    },
}


def check(value, schema, at='.') -> None:
    if isinstance(schema, dict):
        assert isinstance(value, dict), at
        assert set(value) <= set(schema), f'{at}: unknown {set(value) - set(schema)}'
        for key in value:
            check(value[key], schema[key], f'{at}{key}.')
    elif isinstance(schema, list):
        assert isinstance(value, list), at
        for i, item in enumerate(value):
            check(item, schema[0], f'{at}{i}.')
    elif isinstance(schema, set):
        assert value in schema, f'{at}: {value}'
    elif isinstance(schema, re.Pattern):
        assert schema.fullmatch(value), f'{at}: {value}'
    else:
        assert type(value) is schema, f'{at}: {value!r} is no {schema.__name__}'


def load_jobset(kind: str) -> dict:
    """The file itself for GPUs; for TPUs, what the command in its header makes of it."""
    path = LAUNCH / 'kubernetes.yaml'
    if kind == 'gpu':
        text = path.read_text()
    else:
        command = re.search('^#   (sed .*) launch/kubernetes.yaml [|]', path.read_text(), re.M)[1]
        done = subprocess.run(['bash', '-c', f'{command} {path}'], capture_output=True, text=True)
        text = done.stdout
    return yaml.load(text, StrictLoader)


@pytest.mark.parametrize('kind', ['gpu', 'tpu'])
def test_the_jobset_has_only_fields_of_its_api(kind):
    check(load_jobset(kind), JOBSET)


@pytest.mark.parametrize('kind', ['gpu', 'tpu'])
def test_the_job_in_it_is_valid_by_kubernetes_own_schema(kind):
    validate = pytest.importorskip(
        'kubernetes_validate', reason="pip install -e '.[test]' brings it"
    )
    template = load_jobset(kind)['spec']['replicatedJobs'][0]['template']
    job = {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': 'mae'}, **template}
    validate.validate(job, validate.latest_version(), strict=True)


@pytest.mark.parametrize('kind', ['gpu', 'tpu'])
def test_exit_statuses_and_pods_in_kubernetes_are_as_main_says(kind):
    jobset = load_jobset(kind)
    replicated = jobset['spec']['replicatedJobs'][0]
    job = replicated['template']['spec']
    pod = job['template']['spec']
    container = pod['containers'][0]
    (rule,) = job['podFailurePolicy']['rules']
    assert rule['action'] == 'FailJob'
    assert rule['onExitCodes'] == {
        'containerName': container['name'],
        'operator': 'In',
        'values': [1, 3],
    }
    assert jobset['spec']['failurePolicy']['rules'][0]['onJobFailureReasons'] == [
        'PodFailurePolicy'
    ]
    assert job['completionMode'] == 'Indexed' and job['completions'] == job['parallelism']
    assert pod['restartPolicy'] == 'Never'  # a podFailurePolicy asks for it
    assert pod['terminationGracePeriodSeconds'] >= 120
    assert pod['securityContext']['runAsNonRoot'] and 'hostNetwork' not in pod
    assert container['securityContext']['allowPrivilegeEscalation'] is False
    assert 'ports' not in container
    mounts = {mount['name'] for mount in container['volumeMounts']}
    assert mounts == {volume['name'] for volume in pod['volumes']}
    environment = {entry['name']: entry for entry in container['env']}
    if kind == 'gpu':
        host = f'{jobset["metadata"]["name"]}-{replicated["name"]}-0-0'
        address = environment['JAX_COORDINATOR_ADDRESS']['value']
        assert re.fullmatch(rf'{host}\.{jobset["spec"]["network"]["subdomain"]}:\d+', address)
        assert environment['JAX_NUM_PROCESSES']['value'] == str(job['completions'])
        assert 'JAX_PROCESS_ID' not in environment  # the Job numbers its pods
    else:
        assert not [name for name in environment if name.startswith('JAX_')]
        assert 'google.com/tpu' in container['resources']['limits']
