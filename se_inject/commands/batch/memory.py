"""How much memory a job takes, known before it starts: from a run of its architecture without data."""

from __future__ import annotations

from dataclasses import dataclass

from se_inject.commands.batch.jobs import Job
from se_inject.commands.batch.manifest import Entry
from se_inject.commands.model import Listener, example_inputs, load
from se_inject.commands.request import ModelRequest
from se_inject.guard import unwrap
from se_inject.injection.plan import survey
from se_inject.models.request import WeightsRequest
from se_inject.parallel import machine
from se_inject.rules.auto import needed

ROOM = 64 << 20  # bytes


@dataclass(frozen=True)
class Footprint:
    """Of an architecture, from a run of it without data."""

    base: int  # bytes of a process that has traced and counted it: interpreter, libraries, modules, graph
    weights: int  # bytes of parameters and buffers
    activations: int  # bytes that one sample makes


UNKNOWN = Footprint(1 << 30, 0, 0)  # of a model that does not run without data; its checkpoint is counted in any case


def architecture(entry: Entry) -> ModelRequest:
    """What of an entry decides how much memory it takes: one for all checkpoints of a model."""
    return ModelRequest(WeightsRequest(entry.model, entry.request.weights.model_args), entry.request.inputs)


def footprint(of: ModelRequest) -> Footprint:
    """Trace and count the model on the meta device. Meant for a process of its own, whose memory it reads."""
    loaded = load(of, Listener(), weights_needed=False)
    model = unwrap(loaded.model)
    surveyed = survey(model, example_inputs(of, loaded), needed(("auto",)), 0)
    activations = surveyed.base.activation_bytes
    tensors = [*model.parameters(), *model.buffers()]
    return Footprint(machine.resident("VmHWM"), sum(t.nbytes for t in tensors), activations)


def need(job: Job, found: Footprint) -> int:
    """Bytes that a job takes at most.

    That is what its process has anyway; the weights, twice, as what was written is read back, and once more for each
    program that is exported; the file that they come from, which is read as a whole in torch's old format; what one
    sample makes, and a quarter more for what functions between modules make; and some room.
    """
    exports = len(set(job.entry.formats) - {"safetensors", "adapter"})
    return found.base + (2 + exports) * found.weights + job.size + found.activations * 5 // 4 + ROOM
