import pytest

from dnpipefs.etcd.releases import known_fault


@pytest.mark.parametrize("version", ["3.5.0", "3.5.2", "3.4.23", "3.4.41", "3.3.27", "2.3.8"])
def test_a_release_with_a_known_fault_is_named(version: str) -> None:
    fault = known_fault(version)
    assert fault is not None
    assert version in fault


@pytest.mark.parametrize("version", ["3.4.42", "3.5.3", "3.5.33", "3.6.14", "3.6.0-rc.1", "4.0.0", "", "git"])
def test_other_releases_pass(version: str) -> None:
    assert known_fault(version) is None
