# SPDX-License-Identifier: MIT
"""The rules that the pages show are rules: each block is loaded into a network namespace."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from nfq_guard.lab.netns import Namespace

pytestmark = pytest.mark.kernel

TREE: Final = Path(__file__).parents[2]
_BLOCK: Final = re.compile(r"^```(iptables|nft)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PAGES: Final = ("docs/hosts.md", "docs/compare.md")


def test_each_block_of_rules_loads(namespace: Callable[[str], Namespace]) -> None:
    loaded = 0
    for page in _PAGES:
        for language, text in _BLOCK.findall((TREE / page).read_text(encoding="utf-8")):
            space = namespace(f"rules{loaded}")
            if language == "nft":
                space.run("nft", "-f", "-", stdin=text)
            else:
                space.run("sh", "-eu", stdin=text)
            loaded += 1
    assert loaded >= 5
