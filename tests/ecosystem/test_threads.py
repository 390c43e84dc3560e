"""Injecting and tracing in one thread while others run models."""

from __future__ import annotations

import threading

import torch

import se_inject
from tests.ecosystem.cases import SIZE, Case, out, over


@over()
def test_threads(case: Case) -> None:
    """Two threads run the injected model and its base while a third injects, verified: every output equal."""
    wanted = {case.model: case.y, case.base: out(case.base, case.x)}
    done, wrong, runs = threading.Event(), [], []
    begun = threading.Barrier(len(wanted) + 1)

    def run(model: torch.nn.Module) -> None:
        begun.wait()
        last = False
        while not last:  # once more when the third is done: each runs at least once, however slowly
            last = done.is_set()
            try:
                runs.append(torch.equal(out(model, case.x), wanted[model]))
            except Exception as error:  # in a thread of its own it would only be printed
                wrong.append(error)
                return

    threads = [threading.Thread(target=run, args=(model,)) for model in wanted]
    for thread in threads:
        thread.start()
    begun.wait()
    try:
        result = se_inject.inject(case.base, SIZE)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not wrong and len(runs) >= 2 and all(runs)
    assert all(check.passed for check in result.report.checks)
