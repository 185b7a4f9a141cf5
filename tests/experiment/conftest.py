import pytest


@pytest.fixture(autouse=True)
def runs_use_one_device(one_device):
    """For all tests of this folder."""
