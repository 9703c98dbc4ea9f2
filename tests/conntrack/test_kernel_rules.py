# SPDX-License-Identifier: MIT
import pytest

from nfq_guard.conntrack.kernel_rules import KERNELS, rules_of
from nfq_guard.errors import UsageError


@pytest.mark.parametrize(
    ("release", "name"),
    [
        ("4.19.0", "5.10"),
        ("5.10", "5.10"),
        ("5.14.21-150500.55-default", "5.10"),
        ("5.15.0-91-generic", "5.15"),
        ("6.0.19", "5.15"),
        ("6.1.0-18-cloud-amd64", "6.1"),
        ("6.12.116", "6.1"),
        ("6.12.117+deb13-cloud-amd64", "6.12"),
        ("6.12", "6.12"),
        ("6.18.44", "6.1"),
        ("7.2.13", "6.1"),
        ("7.3", "6.12"),
        ("10.0", "6.12"),
    ],
)
def test_a_release_has_the_rules_of_the_last_generation_before_it(release: str, name: str) -> None:
    assert rules_of(release) is KERNELS[name]


@pytest.mark.parametrize("release", ["", "6", "six.one", "6.x", "-6.1"])
def test_not_a_release(release: str) -> None:
    with pytest.raises(UsageError, match=r"expected a version such as 6\.1"):
        rules_of(release)
