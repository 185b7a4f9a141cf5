import pytest
from helpers.shared_runs import first_devices


@pytest.fixture(autouse=True)
def devices_of_runs(request):
    """Lets runs use one device, which compiles sooner than eight, or as many as `devices` says."""
    marker = request.node.get_closest_marker('devices')
    with first_devices(marker.args[0] if marker else 1):
        yield
