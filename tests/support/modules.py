# SPDX-License-Identifier: MIT
"""The compiled modules and the core, from the lists in pyproject.toml.

`python -m tests.support.modules core` prints the files of the core, `tests` the directories with
the tests of compiled modules.
"""

import sys
import tomllib
from pathlib import Path
from typing import Any, Final

_ROOT: Final = Path(__file__).parents[2]
_PACKAGE: Final = _ROOT / "nfq_guard"
_CORE_CONTRACT: Final = "The core does no I/O and reads no clock"


def _tool() -> dict[str, Any]:
    tool: dict[str, Any] = tomllib.loads((_ROOT / "pyproject.toml").read_text())["tool"]
    return tool


def compiled() -> list[str]:
    """The dotted names of the modules that are compiled in a wheel."""
    patterns = _tool()["hatch"]["build"]["targets"]["wheel"]["hooks"]["mypyc"]["include"]
    names = []
    for pattern in patterns:
        files = list(_ROOT.glob(pattern))
        assert files, f"pyproject.toml: no module is {pattern}"
        names += [".".join(path.relative_to(_ROOT).with_suffix("").parts) for path in files]
    return sorted(name.removesuffix(".__init__") for name in names)


def core() -> list[str]:
    """The files of the core, as patterns for `coverage report --include`."""
    contracts = _tool()["importlinter"]["contracts"]
    (contract,) = (one for one in contracts if one["name"] == _CORE_CONTRACT)
    paths = (name.replace(".", "/") for name in contract["source_modules"])
    return [f"{path}/*" if (_ROOT / path).is_dir() else f"{path}.py" for path in paths]


def tests_of_compiled() -> list[str]:
    """The directories with the tests of compiled modules, room by room."""
    rooms = {name.split(".")[1] for name in compiled()}
    directories = {room if (_PACKAGE / room).is_dir() else "core" for room in rooms}
    # The tests of `wire` are among those of the core.
    found = {name for name in directories if (_ROOT / "tests" / name).is_dir()}
    return [f"tests/{name}" for name in sorted(found | {"compiled", "core"})]


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["core"]:
            sys.stdout.write(",".join(core()))
        case ["tests"]:
            sys.stdout.write(" ".join(tests_of_compiled()))
        case _:
            sys.exit("usage: python -m tests.support.modules core|tests")
