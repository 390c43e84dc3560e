"""``model.onnx``: one file for ONNX Runtime and its relatives, checked by both right after it is written."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from se_inject.checks.outputs import against_outputs
from se_inject.checks.reference import run_forward
from se_inject.errors import WriteError, first_line
from se_inject.inputs import Inputs
from se_inject.output.formats.child import REFUSED, run_in_child
from se_inject.output.formats.exporting import batched, cases, close, in_words, label, levels, tensors
from se_inject.output.formats.subject import Content, Format, Subject, unlogged
from se_inject.types import Check

NAME = "model.onnx"
CHECK = "model.onnx"
LARGEST = 2**31 - 2**20  # bytes: protobuf ends at 2 GiB
RUNTIME = 1e-4  # of the outputs' size: other kernels than torch's
SIZES = {0: "batch", 2: "height", 3: "width"}
NO_INPUTS = "not run: there are no inputs to compare it on"
NO_KERNELS = "ONNX Runtime cannot run it here"
NOT_RUN = "not run, as its graph decides what that takes: --run-onnx does, with limits"
LOAD = f"""
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.intra_op_num_threads = threads
try:
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
except NoKernel as error:
    print(str(error).splitlines()[0], file=sys.stderr)
    sys.exit({REFUSED})
names = [value.name for value in session.get_inputs()]
shape = session.get_inputs()[0].shape
def tensors(args, kwargs):
    return [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
def fits(sizes, args, kwargs):
    if sizes is not None and tuple(sizes) != tuple(i for i, size in enumerate(shape) if isinstance(size, str)):
        return False
    return all(isinstance(size, str) or size == n for size, n in zip(shape, tensors(args, kwargs)[0].shape))
def call(*args, **kwargs):
    found = session.run(None, {{name: t.numpy() for name, t in zip(names, tensors(args, kwargs), strict=True)}})
    return [torch.from_numpy(array) for array in found]
"""


def write(subject: Subject) -> Mapping[str, Content]:
    """The exported program, translated to ONNX."""
    with _needed():
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    size = sum(t.numel() * t.element_size() for t in subject.whole.state_dict().values())
    if size > LARGEST:
        raise WriteError(f"format onnx: the weights have {size:,} bytes, and one ONNX file holds less than 2 GiB.")
    exported = subject.exported

    def save(path: Path) -> None:
        import onnx

        with _quiet():
            try:
                made = torch.onnx.export(exported.program, dynamo=True, verbose=False, external_data=False)
            except Exception as error:  # of torch and onnxscript, whatever they meet
                raise WriteError(f"format onnx: torch.onnx does not take this model ({first_line(error)}).") from error
        assert made is not None
        proto = made.model_proto
        _without_paths(proto)
        _name_sizes(proto)
        for key, value in label(subject.plan, exported).items():
            proto.metadata_props.add(key=key, value=value)
        path.write_bytes(proto.SerializeToString(deterministic=True))
        onnx.checker.check_model(path, full_check=True)

    return {NAME: save}


def check(folder: Path, subject: Subject) -> Check:
    """The file that was just written, in ONNX Runtime, against the model."""
    if subject.inputs is None:
        return Check(CHECK, None, NO_INPUTS, "nothing-to-compare")
    with _needed():
        import onnx
        import onnxruntime
    try:
        onnx.checker.check_model(folder / NAME)
        session = _session(onnxruntime, folder / NAME)
        free = tuple(i for i, size in enumerate(session.get_inputs()[0].shape) if isinstance(size, str))
        compared = list(cases(subject.whole, batched(subject.inputs), free, subject.plan.seed))
        return _compare(compared, [_outputs(session, case) for case in compared], free, subject)
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented as error:  # half precision on a CPU
        return Check(CHECK, None, f"valid by onnx.checker; {NO_KERNELS}: {first_line(error)}", "fails")
    except Exception as error:  # of two libraries
        return Check(CHECK, False, f"does not run: {first_line(error)}", "fails")


def inspect(folder: Path, subject: Subject) -> Check:
    """A file of earlier, run in a process with limits if that is asked for, against the model, or against the outputs
    that the plan remembers."""
    if "onnx" not in subject.runs:
        return Check(CHECK, None, NOT_RUN, "not-run")
    if subject.inputs is None:
        return Check(CHECK, None, NO_INPUTS, "nothing-to-compare")
    with _needed():
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    inputs, model = batched(subject.inputs), subject.model
    tried: list[tuple[tuple[int, ...] | None, Inputs]] = [(None, inputs)]
    if model is not None:
        tried = [(free, case) for free in levels(inputs) for case in cases(model, inputs, free, subject.plan.seed)]
    outputs, failure, no_kernels = run_in_child(folder / NAME, LOAD, tried)
    if failure:
        detail = f"{NO_KERNELS if no_kernels else 'does not run'}: {failure}"
        return Check(CHECK, None if no_kernels else False, detail, "fails")
    fitting = [(free, case, found) for (free, case), found in zip(tried, outputs, strict=True) if found]
    if not fitting:
        detail = "not compared: it takes inputs of other sizes than there are, or has no outputs"
        return Check(CHECK, None, detail, "nothing-to-compare")
    if model is None:
        return against_outputs(CHECK, outputs[0], subject.plan)
    free = fitting[0][0] or ()
    return _compare([case for _, case, _ in fitting], [found for *_, found in fitting], free, subject)


def _compare(
    compared: Sequence[Inputs], outputs: Sequence[list[torch.Tensor]], free: Sequence[int], subject: Subject
) -> Check:
    worst = 0.0
    for case, got in zip(compared, outputs, strict=True):
        want = run_forward(subject.whole, case, False, subject.plan.seed).outputs
        fits, apart = close(want, got, RUNTIME)
        if not fits:
            return Check(CHECK, False, f"ONNX Runtime's outputs differ by {apart:.2g} of their size", "differs")
        worst = max(worst, apart)
    return Check(CHECK, True, f"ONNX Runtime: {len(compared)} inputs within {worst:.2g}; {in_words(free)}")


def _session(onnxruntime: Any, path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _outputs(session: Any, inputs: Inputs) -> list[torch.Tensor]:
    given = tensors(inputs)
    names = [value.name for value in session.get_inputs()]
    found = session.run(None, {name: t.cpu().numpy() for name, t in zip(names, given, strict=True)})
    return [torch.from_numpy(array) for array in found]


def _without_paths(proto: Any) -> None:
    """Stack traces name folders of this machine."""
    for node in (*proto.graph.node, *(node for function in proto.functions for node in function.node)):
        kept = [(p.key, p.value) for p in node.metadata_props if not p.key.endswith("stack_trace")]
        del node.metadata_props[:]
        for key, value in kept:
            node.metadata_props.add(key=key, value=value)


def _name_sizes(proto: Any) -> None:
    """Free sizes are called batch, height and width, not s77."""
    names: dict[str, str] = {}
    if len(proto.graph.input) == 1:
        dims = proto.graph.input[0].type.tensor_type.shape.dim
        names = {dim.dim_param: SIZES.get(i, f"side{i}") for i, dim in enumerate(dims) if dim.dim_param}
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), dim.dim_param)


@contextmanager
def _needed() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise WriteError(f"format onnx needs {error.name}: python -m pip install 'se_inject[onnx]'.") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's warnings and log lines are for its own developers."""
    with unlogged("onnxscript"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


FORMAT = Format("one file for ONNX Runtime", (NAME,), write, check, inspect)
