"""What one forward costs: parameters, MACs, element-wise ops, activation bytes, per sample, on a weightless copy.

Conventions, none of which an optimised kernel has to follow (fvcore, ptflops and torchinfo differ in just these):

- ``macs``: torch's own FLOP formulas / 2, for convolutions and matrix products (2 FLOPs = 1 MAC; the bias is in it).
- ``elementwise``: 1 per output number of an op that torch tags pointwise, however hard the function (``gelu`` 1); 1 per
  input number of one in ``REDUCTIONS`` (``mean``, ``sum``, ``amax``, ``var``; the division at its end is not counted);
  the rest as ``ELEMENTWISE`` says. One SE block at C=64, 56x56, r=16: 512 MACs; 200,704 additions of the pool, 200,704
  multiplications by the gate, and the 4 + 64 activations of the ReLU and the sigmoid.
- ``activation_bytes``: what modules without children return; in-place results and views are no new memory. Results of
  functions between modules (``x + shortcut``, ``x * gate``, ``F.relu``) are not in it.
- ``parameters``: every parameter once, however many modules share it.

Not counted: data movement and the making of tensors (``MOVES``); what one fused op does inside beyond its formula; ops
that no formula knows, which ``uncounted`` lists by name (``topk``, NMS, matrix-vector products); the backward pass.
Work that does not grow with the batch (standardised weights, position tables) is shared out over the samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from se_inject.checks.elementwise import ELEMENTWISE, MOVES, REDUCTIONS, Formula, moves, per_input, per_output
from se_inject.errors import PlanMismatchError, TraceError, closest, one_line
from se_inject.guard import eager
from se_inject.inputs import Inputs, resolve, tensor_leaves
from se_inject.trace.skeleton import share, skeleton, to_meta
from se_inject.types import Cost, Plan, SiteCost


@dataclass(eq=False)  # compared by identity: a tally is a place to add to
class Tally:
    """The running sums of one forward, or of one watched module in it, over the whole batch."""

    macs: int = 0
    elementwise: int = 0
    activation_bytes: int = 0
    uncounted: Counter[str] = field(default_factory=Counter)

    def cost(self, parameters: int, batch: int) -> Cost:
        macs, elementwise, size = self.macs // batch, self.elementwise // batch, self.activation_bytes // batch
        return Cost(parameters, macs, elementwise, size, dict(sorted(self.uncounted.items())))


class Count(TorchDispatchMode):
    """Adds every op to the total and to all watched modules that are running (``open``)."""

    supports_higher_order_operators = True  # listed as uncounted; without this torch refuses to run them

    def __init__(self) -> None:
        super().__init__()
        self.open = [Tally()]
        self.convolved: tuple[int, ...] = ()  # the shape that the first convolution takes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.HigherOrderOperator):
            self._add(uncounted=func.name())
            return func(*args, **kwargs)
        flops = flop_registry.get(func._overloadpacket)
        rule = None if flops else _listed(func)
        if not flops and not rule:
            with self:  # under inference_mode composite ops come whole: count their parts, as FlopCounterMode does
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
            rule = _tagged(func)
        out = func(*args, **kwargs)
        if flops:
            if not self.convolved and "convolution" in func._schema.name:
                self.convolved = tuple(args[0].shape)
            self._add(macs=flops(*args, **kwargs, out_val=out) // 2)
        elif rule:
            named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
            self._add(elementwise=rule(named, next(iter(tensor_leaves(out)), None)))
        else:
            self._add(uncounted=str(func._overloadpacket))
        return out

    def _add(self, macs: int = 0, elementwise: int = 0, activation_bytes: int = 0, uncounted: str = "") -> None:
        for tally in dict.fromkeys(self.open):
            tally.macs += macs
            tally.elementwise += elementwise
            tally.activation_bytes += activation_bytes
            if uncounted:
                tally.uncounted[uncounted] += 1


@cache
def _listed(func: Any) -> Formula | None:
    """The rule of an op by name; ``relu_`` goes by the name of ``relu``."""
    namespace, name = func._schema.name.split("::")
    if func.is_view or torch.Tag.inplace_view in func.tags:
        return moves
    if namespace != "aten":
        return None
    plain = name.removesuffix("_")
    return moves if plain in MOVES else ELEMENTWISE.get(plain)


@cache
def _tagged(func: Any) -> Formula | None:
    """The rule of an op that reduces, or is tagged pointwise; the in-place form of some lacks the tag (``gelu_``)."""
    namespace, name = func._schema.name.split("::")
    plain = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    tags = {*func.tags, *getattr(getattr(plain, func._overloadname, None), "tags", ())}
    if torch.Tag.pointwise in tags:
        return per_output(1)
    return per_input(1) if namespace == "aten" and name in REDUCTIONS else None


def _new_bytes(module: nn.Module, args: Any, kwargs: Any, out: Any) -> int:
    """Bytes of the outputs that share no memory with the inputs or with the module's own tensors."""
    own = [*module._parameters.values(), *module._buffers.values()]
    seen = {t.untyped_storage()._cdata for t in tensor_leaves((args, kwargs, own)) if t.layout is torch.strided}
    fresh = {id(t): t for t in tensor_leaves(out) if t.layout is torch.strided}
    return sum(t.numel() * t.element_size() for t in fresh.values() if t.untyped_storage()._cdata not in seen)


def _forward(model: nn.Module, inputs: Inputs, watch: Iterable[str]) -> tuple[Tally, dict[str, Tally], int]:
    """One counted forward of a copy that is ours to hook, and the samples in it."""
    count, watched = Count(), {path: Tally() for path in watch}

    def produced(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        count._add(activation_bytes=_new_bytes(module, args, kwargs, out))

    for module in model.modules():
        if next(module.children(), None) is None:
            module.register_forward_hook(produced, with_kwargs=True)
    for path, tally in watched.items():  # after `produced`, so that a watched leaf's own output is still inside
        module = model.get_submodule(path)
        module.register_forward_pre_hook(lambda *_, tally=tally: count.open.append(tally))
        module.register_forward_hook(lambda *_, tally=tally: count.open.remove(tally), always_call=True)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), eager(), count:
        model.eval()(*inputs.args, **inputs.kwargs)
    return count.open[0], watched, batch_size(inputs, count.convolved)


def batch_size(inputs: Inputs, convolved: tuple[int, ...] = ()) -> int:
    """Leading side of the first tensor; for a list of single images (detection) its length; 1 for a single image, to
    which the forward adds the batch in front of the first convolution, that takes ``convolved``."""
    for value in (*inputs.args, *inputs.kwargs.values()):
        if found := tensor_leaves(value):
            if isinstance(value, list | tuple) and len(found) == len(value) and all(t.dim() == 3 for t in found):
                return len(found)
            if convolved[:1] == (1,) and convolved[1:2] == found[0].shape[:1] and len(convolved) == found[0].dim() + 1:
                return 1
            return max(1, found[0].shape[0]) if found[0].dim() else 1
    return 1


@dataclass(frozen=True)
class Measured:
    """One counted forward: the total, the subtree of every watched module, and what is to be said about it."""

    cost: Cost
    by_module: dict[str, Cost]
    note: str = ""  # the fallback taken, or numbers that the batch does not divide
    batch: int = field(default=1, compare=False)

    def sites(self, plan: Plan) -> tuple[SiteCost, ...]:
        """What each insertion of ``plan``, all of which were watched, costs over all its calls; in plan order."""
        costs = ((d.site.id, self.by_module[d.key]) for d in plan.insertions)
        return tuple(SiteCost(id, c.parameters, c.macs, c.elementwise, c.activation_bytes) for id, c in costs)


def measure(model: nn.Module, example_inputs: Any = None, watch: Collection[str] = ()) -> Measured:
    """Count one forward in eval mode; the model, its mode, buffers and hooks stay as they are.

    ``example_inputs``: as for ``inputs.resolve``. ``watch``: paths of modules that get a ``Cost`` of their own, over
    all their calls and with their children; a module inside another watched one counts in both. Runs on meta tensors;
    where an op has no meta kernel (NMS), once for real on a copy that shares the weights, as ``note`` then says.
    Raises ``TraceError`` when neither runs, and ``PlanMismatchError`` for a path that the model does not have.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    if missing := [path for path in watch if path not in modules]:
        raise PlanMismatchError(
            f"asked for the cost of module {missing[0]!r}, but {type(model).__name__} has none at that path."
            f"{closest(missing[0], modules)} Costs per site are taken from the rewritten model."
        )
    inputs = resolve(model, example_inputs)
    copied = skeleton(model)
    notes = []
    try:
        total, watched, batch = _forward(copied, inputs.map(to_meta), watch)
    except Exception as error:  # a missing meta kernel, .item(), or a tensor that the copy kept on its device
        notes.append(f"counted in a real run, as the model does not run on meta tensors ({one_line(error)})")
        total, watched, batch = _real_forward(model, inputs, watch)
    if odd := [name for name in ("macs", "elementwise", "activation_bytes") if getattr(total, name) % batch]:
        notes.append(f"not divisible by the batch of {batch}, rounded down: {', '.join(odd)}")
    return Measured(
        total.cost(parameters(model), batch),
        {path: tally.cost(parameters(modules[path]), batch) for path, tally in watched.items()},
        "; ".join(notes),
        batch,
    )


def _real_forward(model: nn.Module, inputs: Inputs, watch: Collection[str]) -> tuple[Tally, dict[str, Tally], int]:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    given = inputs.map(lambda t: t.detach().to(device, copy=True))  # a first op in place must not write the user's
    with sdpa_kernel(SDPBackend.MATH):  # attention in parts, as on meta
        try:
            return _forward(skeleton(model, keep=share), given, watch)
        except Exception as error:
            raise TraceError(
                f"cannot count the cost of {type(model).__name__}: its forward failed on inputs "
                f"{inputs} ({one_line(error)}). Check that model.eval()(*inputs) runs by itself."
            ) from error


def parameters(module: nn.Module) -> int:
    """Numbers in all parameters, shared ones once."""
    return sum(p.numel() for p in module.parameters())
