# SPDX-License-Identifier: MIT
"""The lab runs as root, in any directory."""

import subprocess
import sys
from pathlib import Path

from nfq_guard import __version__
from nfq_guard.lab.child import environment


def test_a_child_takes_no_module_of_the_current_directory(tmp_path: Path) -> None:
    for name in ("nfq_guard", "orjson", "socket"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('planted: {name}')\n")
    for words in (("-m", "nfq_guard", "--version"), ("-c", "import orjson, socket")):
        done = subprocess.run(
            [sys.executable, *words],
            env=environment(),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout in ("", f"nfq-guard {__version__}\n")
