"""The same tasks on a Ray cluster, whose scheduler knows the nodes, their cores and their memory.

The nodes have se_inject installed, and see the files under the same paths (a shared file system). A task that is lost
with its node, or with its process, is given to another, ``RETRIES`` times. Between tasks a process stays.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, TypeVar

from se_inject.errors import LoadError, one_line
from se_inject.parallel.pool import Failure, attempt, gigabytes
from se_inject.types import Reason

T = TypeVar("T")
R = TypeVar("R")
RETRIES = 3


def run(
    tasks: Iterable[T], work: Callable[[T], R], *, address: str, needs: Callable[[T], int] | None = None
) -> Generator[tuple[T, R | Failure], None, None]:
    """As ``pool.run``: each task with its result or a ``Failure``, as they end; one core and ``needs`` bytes for each.

    ``address``: of the cluster, ``auto`` or ``host:port``. Raises ``LoadError`` when it cannot be reached.
    """
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError as error:
        raise LoadError("--ray needs ray: pip install se_inject[ray].") from error
    if not ray.is_initialized():  # and stays so until the process ends: the next tasks go to the same cluster
        try:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        except (OSError, ValueError, RuntimeError) as error:
            refusal = f"--ray {address}: no Ray cluster answers there; start one with ray start --head."
            raise LoadError(refusal) from error
    remote: Any = ray.remote(num_cpus=1, max_retries=RETRIES)(_task)
    largest = max((int(node["Resources"].get("memory", 0)) for node in ray.nodes() if node["Alive"]), default=0)
    running = {}
    try:
        for task in tasks:
            need = needs(task) if needs else 0
            if need > largest:
                more = f"it needs {gigabytes(need)} of memory"
                yield task, Failure(Reason("memory", f"{more}, and the largest node has {gigabytes(largest)}"))
            else:
                sent = remote.options(memory=need or None).remote(work, task, os.getcwd(), sys.path)
                running[sent] = task
        while running:
            for ended in ray.wait(list(running), num_returns=1)[0]:
                task = running.pop(ended)
                try:
                    yield task, ray.get(ended)
                except RayTaskError as error:  # of ours, before the work: a folder that the node does not see
                    text = f"cannot start on its node: {one_line(error.cause or error)}"
                    yield task, Failure(Reason("error", text))
                except RayError as error:
                    yield task, Failure(Reason("killed", f"lost, {RETRIES + 1} times: {one_line(error)}"))
    finally:
        for left in running:
            ray.cancel(left, force=True)


def _knock(address: str) -> None:
    """Ray would ask for minutes where nobody listens. Raises ``OSError``, for no port ``ValueError``."""
    if address != "auto":
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), timeout=10).close()


def _task(work: Callable[[T], R], task: T, folder: str, path: Sequence[str]) -> R | Failure:
    """In a process of the cluster: as if it had been started where we were."""
    os.chdir(folder)
    sys.path += [entry for entry in path if entry not in sys.path]
    return attempt(work, task)
