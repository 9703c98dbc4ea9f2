# SPDX-License-Identifier: MIT
from dataclasses import replace

import pytest

from nfq_guard.conntrack.kernel_rules import KERNELS, guess_rules, rules_of
from nfq_guard.errors import UsageError
from nfq_guard.finding import Reason

VENDORS = "vendors backport changes"
UNKNOWN = "is not known"


@pytest.mark.parametrize(
    ("release", "name"),
    [
        ("4.19.0", "5.10"),
        ("4.18.0-513.el8.x86_64", "5.10"),
        ("5.10", "5.10"),
        ("5.10.0-46-cloud-amd64", "5.10"),
        ("5.13.19", "5.10"),
        ("5.14", "5.14"),
        ("5.14.0-427.el9", "5.14"),
        ("5.14.21-150500.55-default", "5.14"),
        ("5.15.0-91-generic", "5.15"),
        ("5.15.167.4-microsoft-standard-WSL2", "5.15"),
        ("5.17.15", "5.15"),
        ("5.18", "5.18"),
        ("5.19.17", "5.18"),
        ("6.0", "5.18"),
        ("6.0.19", "5.18"),
        ("6.1.0-18-amd64", "6.1"),
        ("6.12.116", "6.1"),
        ("6.12.117+deb13-cloud-amd64", "6.12"),
        ("6.12", "6.12"),
        ("6.18.44", "6.1"),
        ("7.2.13", "6.1"),
        ("7.3", "6.12"),
        ("7.3.4", "6.12"),
        ("10.0", "6.12"),
    ],
)
def test_a_release_has_the_rules_of_the_last_generation_before_it(release: str, name: str) -> None:
    assert rules_of(release) is KERNELS[name]


@pytest.mark.parametrize(
    "release",
    [
        "", "6", "six.one", "6.x", "-6.1", "6.1x", "6.1 ", "6..1", "v6.1", "\u0666.\u0661",
        "6.1\n", "6.1-a b", "99999.1", "latest",
    ],
)  # fmt: skip
def test_not_a_release(release: str) -> None:
    with pytest.raises(UsageError, match=r"expected a version such as 6\.1 .*, found '.*'$"):
        rules_of(release)


def test_the_error_about_a_release_is_short() -> None:
    with pytest.raises(UsageError) as caught:
        rules_of("x" * 5000)
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("name", KERNELS)
def test_the_name_of_a_generation_is_no_guess(name: str) -> None:
    guess = guess_rules(name)
    assert (guess.rules.name, guess.doubt) == (name, "")


@pytest.mark.parametrize(
    ("release", "doubts"),
    [
        ("6.0", ()),
        ("6.18.44", ()),
        ("7.3-rc2", ()),
        ("7.3-rc2+", ()),
        ("7.3.4", ()),
        ("5.14.0-427.el9", (VENDORS,)),
        ("6.1.0-18-amd64", (VENDORS,)),
        ("6.12.117+deb13-cloud-amd64", (VENDORS,)),
        ("5.9", (UNKNOWN,)),
        ("4.18.0-513.el8", (UNKNOWN, VENDORS)),
        ("7.4", ("after 7.3",)),
        ("8.0.1-vendor", ("after 7.3", VENDORS)),
    ],
)
def test_what_is_doubtful_about_a_release(release: str, doubts: tuple[str, ...]) -> None:
    found = guess_rules(release).doubt.split("; ") if guess_rules(release).doubt else []
    assert len(found) == len(doubts)
    assert all(part in text for part, text in zip(doubts, found, strict=True))


@pytest.mark.parametrize(
    ("release", "no_entry"),
    [
        ("5.10.262", False),
        ("5.15.132", False),
        ("6.1.192", False),
        ("6.2.0", True),
        ("6.12.117", True),
        ("6.18.44", True),
        ("7.3.4", True),
    ],
)
def test_how_a_kernel_logs(release: str, *, no_entry: bool) -> None:
    log = guess_rules(release).log
    assert (Reason.NO_ENTRY not in log.silent) == no_entry
    assert Reason.SEQ_OVER not in log.silent
    assert Reason.ICMP_UNRELATED in log.silent


def test_each_generation_differs_from_every_other() -> None:
    unnamed = [replace(rules, name="") for rules in KERNELS.values()]
    assert len(set(unnamed)) == len(unnamed)
