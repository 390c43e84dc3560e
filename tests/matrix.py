"""The fast tests with the oldest torch that setup.cfg promises, and on every Python of this machine: ``make matrix``.

Runs without the project's environment, and gives each run an environment of its own in ``.matrix``.
"""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSIONS = ("3.11", "3.12", "3.13", "3.14")  # of Python, as the classifiers in setup.cfg


def oldest(config: configparser.ConfigParser) -> str:
    """What pip gets for the oldest torch and torchvision that the metadata promises."""
    promised = f"{config['options']['install_requires']}\n{config['options.extras_require']['torchvision']}"
    return " ".join(f"{name}=={version}.*" for name, version in re.findall(r"\b(torch\w*)>=(\d+\.\d+)", promised))


def python(version: str) -> str | None:
    """A Python of that version: on the path, or of pyenv or uv."""
    kept = [
        *Path.home().glob(f".pyenv/versions/{version}.*/bin/python"),
        *Path.home().glob(f".local/share/uv/python/cpython-{version}.*/bin/python"),
    ]
    for found in filter(None, (shutil.which(f"python{version}"), *map(str, sorted(kept)))):
        if subprocess.run([found, "-c", "import ensurepip"], capture_output=True).returncode == 0:
            return found
    return None


def runs() -> Iterator[tuple[str, list[str]]]:
    """Name of each run, and the variables that ``make test`` gets for it; none where its Python is absent."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    torch = oldest(config)
    yield torch, [f"TORCH={torch}", "VENV=.matrix/oldest"]
    for version in VERSIONS:
        own = version == "{}.{}".format(*sys.version_info)  # the environment that `make` has anyway
        found = sys.executable if own else python(version)
        given = [f"PYTHON={found}", f"VENV={'.venv' if own else f'.matrix/{version}'}"]
        yield f"Python {version}", given if found else []


def main(make: str, *variables: str) -> int:
    said = {}
    for name, given in runs():
        done = given and subprocess.run([make, "test", *given, *variables], cwd=ROOT).returncode
        said[name] = "absent" if not given else "failed" if done else "passed"
    print(*(f"{name}: {outcome}" for name, outcome in said.items()), sep="\n")
    return "failed" in said.values()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
