"""The child that reads mutated files does notice what it is there for."""

import textwrap

import pytest
from helpers import fuzzing, mutations

HARM = {
    'an exception': ('raise KeyError(3)', 'KeyError: 3'),
    'memory': ('bytearray(1 << 30)', 'MemoryError'),
    'hidden memory': (
        """
        try:
            bytearray(1 << 30)
        except Exception as error:
            raise UserError('a bad file') from error
        """,
        'out of memory',
    ),
    'a pickle': ("pickle.loads(b'cos\\nsystem\\n.')", 'pickle.find_class'),
    'a file': ("open('ran', 'w')", "open('ran'"),
    'a program': ("__import__('subprocess').run(['true'])", 'subprocess.Popen'),
    'a leftover': ("__import__('os').mkdir('x')", "wrote ['x']"),
}


@pytest.fixture
def plant(monkeypatch, tmp_path):
    """Puts in place a fuzz_<what>.py whose third case runs `code`."""

    def plant(code: str) -> None:
        source = f"""\
        import os, pickle
        from mae_jax.errors import UserError
        ACCEPTED = (UserError,)
        prepare = lambda folder: None
        make = lambda state, rng: rng.random()
        leftovers = lambda state: os.listdir('.')
        cases = []

        def read(state, case):
            cases.append(case)
            if len(cases) == 3:
{textwrap.indent(textwrap.dedent(code), ' ' * 16)}
            elif len(cases) == 2:
                raise UserError('refused')
        """
        (tmp_path / 'fuzz_planted.py').write_text(textwrap.dedent(source))
        monkeypatch.setattr(fuzzing, 'PATHS', (*fuzzing.PATHS, tmp_path))

    return plant


def run(count: int = 4) -> fuzzing.Report:
    return fuzzing.fuzz('planted', count, memory=1 << 28)


def test_all_is_well_where_nothing_happens(plant):
    plant('pass')
    report = run()
    assert (report.read, report.refused, report.failures) == (3, 1, [])


@pytest.mark.parametrize('harm', HARM)
def test_harm_is_noticed_and_the_case_is_named(harm, plant):
    code, message = HARM[harm]
    plant(code)
    try:
        failures = run().failures
    except AssertionError as error:  # it left something behind
        failures = [f'case 2 {error}']
    assert failures and 'case 2 ' in failures[0] and message in failures[0]


def test_a_crash_is_noticed_and_the_case_is_named(plant):
    plant('os.abort()')
    with pytest.raises(AssertionError, match='case 2 .*planted 0 2 1'):
        run()


@pytest.mark.slow
def test_a_case_that_hangs_is_noticed(plant, monkeypatch):
    monkeypatch.setattr(fuzzing, 'CASE_S', 2.0)
    plant("__import__('time').sleep(100)")
    with pytest.raises(AssertionError, match='case 2 hung for 2 s'):
        run()


def test_a_case_is_a_function_of_its_number(plant):
    """So that one that fails can be run again, alone."""
    import random

    data, others = bytes(range(256)) * 4, [b'other']

    def mutated(number: int) -> bytes:
        return mutations.mutate(data, random.Random(f'images 0 {number}'), others)

    assert mutated(7) == mutated(7)
    assert len({mutated(number) for number in range(50)}) > 40
