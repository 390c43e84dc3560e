"""Feeds the readers what hypothesis makes of their formats, for a minute each: read, or refused in one line.

    make fuzz
    python -m tests.fuzz.run --seconds 60 checkpoint index

Nothing is collected by pytest, and nothing is kept: the corpus is made of small files of every kind, changed. What
fails is printed with its bytes, and becomes a test in ``tests/checks``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from se_inject.errors import SEInjectError
from tests.fuzz.targets import TARGETS, Target


def fuzz(target: Target, seconds: float, start: int) -> tuple[int, int]:
    """Examples tried and refused until the time is over. Raises what the reader should not have."""
    tried = refused = 0
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        number = start
        while time.monotonic() < end:

            @seed(number)
            @settings(
                max_examples=200, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck), print_blob=False,
            )  # fmt: skip
            @given(target.inputs)
            def once(data: bytes) -> None:
                nonlocal tried, refused
                if time.monotonic() > end:
                    return
                tried += 1
                path = Path(folder) / f"{tried}{target.suffix}"  # a new one each time: tensors lie in their file
                path.write_bytes(data)
                try:
                    target.read(path)
                except SEInjectError as error:
                    refused += 1
                    text = str(error)
                    assert "\n" not in text and "weights_only" not in text, (
                        text
                    )  # the command line escapes what does not print
                finally:
                    path.unlink()

            once()
            number += 1
    return tried, refused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--seconds", type=float, default=60, help="for each target (default 60)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="printed with the result, to repeat it")
    given_args = parser.parse_args()
    if unknown := set(given_args.targets) - TARGETS.keys():
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    for name in given_args.targets or TARGETS:
        print(f"{name}: {given_args.seconds:g} s from seed {given_args.seed}", end=" ", flush=True)
        tried, refused = fuzz(TARGETS[name], given_args.seconds, given_args.seed)
        print(f"{tried:,} tried, {refused:,} refused", flush=True)
        assert 0 < refused <= tried


if __name__ == "__main__":
    sys.exit(main())
