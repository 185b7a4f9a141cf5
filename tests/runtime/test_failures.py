"""Which errors are worth another start of the run, and which would only come back."""

import jax
import pytest
from jax.errors import JaxRuntimeError

from mae_jax.errors import EXIT_LOST, EXIT_USER_ERROR, Lost, UserError
from mae_jax.runtime.failures import ending_together, is_lost

GLOO = 'UNKNOWN: Gloo all-reduce failed: [pair.cc:547] Connection closed by peer [127.0.0.1]:1713'
BARRIER = (
    'ABORTED: Barrier failed because: task 1 has disconnected '
    "[type.googleapis.com/tensorflow.CoordinationServiceError='']"
)
DUPLICATE = 'INTERNAL: NCCL operation ncclCommInitRankConfig failed: invalid usage (run with ...)'


class Device:
    platform = 'gpu'

    def memory_stats(self):
        return {'bytes_limit': 3 << 30}


def ended_with(message):
    """The error that a run ends with, where a device reports this one."""
    with pytest.raises(Exception) as raised, ending_together():
        raise JaxRuntimeError(message)
    return raised.value


def test_one_process_has_lost_no_other():
    assert not is_lost(ValueError(GLOO))


@pytest.mark.parametrize(
    ('message', 'lost'),
    [
        (GLOO, True),
        (BARRIER, True),
        ('RESOURCE_EXHAUSTED: out of memory', False),
        (DUPLICATE, False),
    ],
)
def test_an_error_of_collectives_or_barriers_is_that_of_another_process(monkeypatch, message, lost):
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    wrapped = UserError('The checkpoint could not be written.')
    wrapped.__cause__ = ValueError(message)
    assert is_lost(ValueError(message)) == is_lost(wrapped) == lost


@pytest.mark.parametrize(
    'message',
    [
        'INTERNAL: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered',
        'UNAVAILABLE: TPU worker did not respond',
        'ABORTED: The core halted unexpectedly',
        'DATA_LOSS: uncorrectable ECC error',
    ],
)
def test_a_machine_that_fails_is_worth_another_start(capsys, message):
    error = ended_with(message)
    assert type(error) is Lost and error.exit_status == EXIT_LOST
    assert 'run the same command to go on' in str(error)
    assert 'Traceback' in capsys.readouterr().err  # it may be a fault of the program


@pytest.mark.parametrize(
    'message',
    [
        'INVALID_ARGUMENT: Executable expected parameter 0 of size 8 but got buffer of size 16',
        'UNIMPLEMENTED: unsupported operand type BF16 in op dot',
        'FAILED_PRECONDITION: Buffer has been deleted or donated',
        'INTERNAL: Mosaic failed to compile TPU kernel: ...',
        'INTERNAL: RET_CHECK failure (xla/service/hlo_verifier.cc:10) ShapeUtil::Equal',
        'a message without a code',
    ],
)
def test_a_fault_of_the_program_is_raised_as_it_is(message):
    error = ended_with(message)
    assert type(error) is JaxRuntimeError and str(error) == message


def test_a_real_fault_of_the_program_is_raised_as_it_is():
    def wrong(x):
        raise ValueError('a bug')

    with pytest.raises(JaxRuntimeError, match='a bug'), ending_together():
        shape = jax.ShapeDtypeStruct((), 'float32')
        jax.block_until_ready(jax.jit(lambda x: jax.pure_callback(wrong, shape, x))(1.0))


def test_too_little_memory_is_one_sentence_with_what_to_change(monkeypatch):
    message = 'RESOURCE_EXHAUSTED: Out of memory allocating 8GB'
    error = ended_with(message)
    assert type(error) is UserError and error.exit_status == EXIT_USER_ERROR
    for word in ('batch_size', 'optimizer.accumulate', 'model.remat', 'mesh.fsdp', 'mae-jax plan'):
        assert word in str(error)
    assert 'GPU' not in str(error)
    monkeypatch.setattr(jax, 'local_devices', lambda: [Device()])
    assert '3.0 GiB of this GPU (75%, its default)' in str(ended_with(message))
    monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', '.5')
    assert '(XLA_PYTHON_CLIENT_MEM_FRACTION=.5)' in str(ended_with(message))


def test_two_processes_on_one_gpu_are_one_sentence(monkeypatch):
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    with pytest.raises(UserError, match='one process for each GPU'), ending_together():
        raise jax.errors.JaxRuntimeError(
            'INTERNAL: NCCL operation ncclCommInitRankConfig failed: invalid usage. Last NCCL '
            "warning(error) log entry (may be unrelated) 'Duplicate GPU detected : rank 0 and rank "
            "1 both on CUDA device 1b000'."
        )


def test_devices_that_cannot_be_started_are_one_sentence():
    with pytest.raises(UserError, match='cannot be used.*JAX_PLATFORMS=cpu'), ending_together():
        raise RuntimeError("Unable to initialize backend 'cuda': no visible device")
