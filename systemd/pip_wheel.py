# SPDX-License-Identifier: MIT
"""Prints the path of the wheel from which this interpreter installs pip into an environment.

An environment that `venv` makes without pip, and pip out of this wheel, take half the time of one
with pip, which `venv` installs and compiles first. Fails where there is no such wheel.
"""

import ensurepip
import sys
import sysconfig
import venv  # noqa: F401 - fails as early as ensurepip where Debian has python3-venv apart
from pathlib import Path

folder = Path(
    sysconfig.get_config_var("WHEEL_PKG_DIR") or Path(ensurepip.__file__).parent / "_bundled"
)
sys.stdout.write(f"{max(folder.glob('pip-*.whl'))}\n")
