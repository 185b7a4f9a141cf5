"""Looking up by name what a config field chooses."""

import math

import pytest

from mae_jax.errors import UserError
from mae_jax.registry import Registry


def make_registry() -> Registry:
    return Registry('curve', 'plot.curve', {'line': abs, 'wave': 'math:sin'})


def test_names_are_looked_up_and_strings_imported_on_first_use():
    registry = make_registry()
    assert list(registry) == ['line', 'wave']
    assert registry.get('line') is abs
    assert registry.get('wave') is math.sin


def test_a_function_of_ones_own_is_known_once_it_was_looked_up():
    registry = make_registry()
    with pytest.raises(
        UserError, match=r"plot\.curve='math:cos' is a curve that is not registered"
    ):
        registry.get('math:cos', may_import=False)
    assert 'math:cos' not in registry
    assert registry.get('math:cos') is registry.get('math:cos', may_import=False) is math.cos


def test_registered_objects_have_names_and_replace_each_other():
    registry = make_registry()

    @registry.register('mine')
    def first():
        pass

    assert registry.get('mine') is first
    registry.register('mine', math.tan)
    assert registry.get('mine') is math.tan and 'mine' in registry
    with pytest.raises(ValueError, match="'wave' is a curve of mae_jax"):
        registry.register('wave', math.tan)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('spiral', r"plot\.curve='spiral' is unknown: use line \| wave, or module:function\."),
        (None, 'plot.curve=None is unknown'),
        (['line'], 'is unknown'),
        (':cos', 'is unknown'),
        ('nowhere.at.all:cos', "cannot be imported .No module named 'nowhere'.: give 'module:fun"),
        ('.relative:cos', 'cannot be imported'),
        ('math:cosine', "math has no function 'cosine'"),
        ('math:pi', "math has no function 'pi'"),
    ],
)
def test_a_name_that_leads_to_nothing_is_refused(name, message):
    registry = make_registry()
    for _ in range(2):  # a failure leaves nothing behind
        with pytest.raises(UserError, match=message):
            registry.get(name)
