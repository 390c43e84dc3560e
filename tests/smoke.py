"""What ``make wheel`` made, tried: each file is installed into an empty environment and run from a strange folder.

The environment sees torch and all others where this interpreter has them, and ``se_inject`` nowhere but in what was
installed: ``python -m tests.smoke dist/*``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

NET = "torchvision:resnet18"
COMMANDS = (
    "--help",
    "list blocks",
    f"plan {NET}",
    f"convert {NET} --random-init --input-size 3,64,64 -o out",
    "verify out",
    "report out --format html",
)
FILES = {"SHA256SUMS", "model.safetensors", "modeling.py", "plan.json", "report.html", "report.json", "report.md"}
ASK = (
    "import se_inject, importlib.metadata as m;print(se_inject.__file__, se_inject.__version__, m.version('se_inject'))"
)


def run(*command: object, cwd: Path) -> str:
    """What it prints. PYTHON variables stay out: they could bring the checkout in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=kept, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def environment(folder: Path, package: Path) -> Path:
    """A new environment that holds the package, and its folder of programs."""
    venv.create(folder, symlinks=True, with_pip=False)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    # the lines of its own .pth files are not read, so that an editable se_inject does not come along
    (site / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")) + "\n")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", "--no-deps")
    run(*pip, "--ignore-installed", "--no-build-isolation", package, cwd=folder)
    return python.parent


def smoke(package: Path, folder: Path) -> None:
    programs = environment(folder / "environment", package)
    (work := folder / "work").mkdir()
    where, *versions = run(programs / "python", "-c", ASK, cwd=work).split()
    installed = Path(where).parent
    assert programs.parent in installed.parents, f"{installed} is not what was installed"
    assert len(set(versions)) == 1, versions
    assert (installed / "py.typed").is_file()
    shown = {command: run(programs / "se-inject", *command.split(), cwd=work) for command in COMMANDS}
    assert "convert" in shown["--help"] and "cbam" in shown["list blocks"]
    assert "FAIL" not in shown["verify out"] and {path.name for path in (work / "out").iterdir()} == FILES
    assert "<style>" in (work / "out" / "report.html").read_text()
    print(f"{package.name}: installed, {len(COMMANDS)} commands run")


def main() -> None:
    assert len(sys.argv) > 1, "which packages?"
    for package in map(Path, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as folder:
            smoke(package.resolve(), Path(folder))


if __name__ == "__main__":
    main()
