"""``se-inject remove``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from se_inject.checks import reference
from se_inject.commands.model import Screen, open_folder, trusting
from se_inject.output.atomic import check_output, write
from se_inject.output.names import TENSORS
from se_inject.output.weights import weights_files
from se_inject.surgery import splice


def remove(
    folder: Path,
    output: Path,
    base: str | None,
    model_args: Mapping[str, Any],
    *,
    force: bool,
    discard_changes: bool = False,
    screen: Screen,
) -> dict[str, Any]:
    """Write the base model's weights from an output folder."""
    files = [folder]
    check_output(output, force=force, discard_changes=discard_changes, inputs=files)
    screen.step("load")
    with trusting(folder):
        model, made = open_folder(folder, base, model_args)
        screen.step("remove")
        state = splice.remove(model, inplace=True).state_dict()
    same = sum(reference.digest(t) == made.baseline.tensors.get(name) for name, t in state.items())
    weights = weights_files(state, advance=screen.advance)
    write(output, weights, force=force, discard_changes=discard_changes, inputs=files)
    total = len(state)
    known = (
        f"{same} of {total} tensors have the hashes of the original" if made.baseline.tensors else f"{total} tensors"
    )
    return {
        "output": str(output),
        "removed": len(made.insertions),
        "tensors": total,
        "identical": same,
        "summary": f"{len(made.insertions)} blocks removed; {known}; written {output / TENSORS}",
    }
