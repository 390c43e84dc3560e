"""3. Every block runs, and can learn: the outputs of the whole model give its parameters a gradient.

In train mode, or in eval mode where the model does not run in train mode so. A gradient of zero is told apart from a
missing one: a path leads there, and what is on it (zeros, saturated gates) is a matter of weights and of the probe.
Modes, buffers, gradients and random state are restored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from se_inject.checks.reference import preserved, set_mode
from se_inject.checks.spliced import Spliced
from se_inject.errors import first_line
from se_inject.inputs import Inputs, tensors_in
from se_inject.random_state import seed_all, undisturbed
from se_inject.types import Check, Plan

SEEDS = 8  # forwards before a gradient of zero counts: drop path may leave out a block
INFINITE, FOUND, ZERO, MISSING = "not finite", "found", "zero", "missing"
KINDS = (INFINITE, FOUND, ZERO, MISSING)  # what one forward finds outweighs what stands behind it


@dataclass
class Probe:
    """What one block saw, and what gradient it got."""

    runs: int = 0
    all_zero: bool = True
    gradient: str = MISSING

    def add(self, other: Probe) -> None:
        self.runs += other.runs
        self.all_zero = self.all_zero and other.all_zero
        self.gradient = min(self.gradient, other.gradient, key=KINDS.index)


@dataclass
class Observed:
    """Forwards with gradients."""

    probes: dict[str, Probe]
    told: bool = False  # the outputs hold a tensor that could have a gradient
    finite: bool = True  # they are
    random: bool = False  # they drew random numbers
    failure: str = ""

    def of(self, *kinds: str) -> list[str]:
        """The blocks whose gradient is so, those apart whose site's value is all zero (a zeroed last gamma)."""
        return [k for k, p in self.probes.items() if p.gradient in kinds and not (p.all_zero and p.gradient == ZERO)]


def check(spliced: Spliced) -> tuple[Check, ...]:
    if spliced.reference is None:
        return ()
    return (reached(spliced.model, spliced.reference.probe, spliced.plan),)


def reached(model: nn.Module, inputs: Inputs, plan: Plan) -> Check:
    """Whether every block runs and can learn, those apart that were asked for where no gate can."""
    owners = {d.key: d.site.carrier.path for d in plan.insertions if d.site.carrier and not d.site.no_gradient}
    look = partial(_observe, model, inputs, owners)
    training, mode, seen = True, "in train mode", look()
    if seen.failure:
        mode = f"in eval mode (train mode does not run so: {seen.failure})"
        training, seen = False, look(training=False)
    if seen.failure:
        return Check("reached", False, f"the forward with gradients failed: {seen.failure}", "fails")
    if not seen.told:
        mode += " (no tensor in the outputs has one: asked of the modules that carry them)"
        seen = look(training=training, whole=False)
    if never := [key for key, probe in seen.probes.items() if not probe.runs]:
        return Check("reached", False, f"{len(never)} blocks never ran {mode}, the first is {never[0]}", "never-ran")
    if missing := seen.of(MISSING):
        # A reentrant checkpoint needs an input that asks for a gradient, and a backward that asks for all.
        again = look(training=training, every=True)
        missing = [key for key in missing if again.probes[key].gradient == MISSING]
        mode += f" ({again.failure})" if again.failure else ""
    if missing:  # of detectors, eval mode returns what has no gradient: it proves nothing
        detail = f"{len(missing)} blocks get no gradient from the outputs {mode}, the first is {missing[0]}"
        return Check("reached", False if training else None, detail, "no-gradient" if training else "untold-gradient")
    left, tail = seen.of(ZERO, INFINITE), ""
    for words, whole, change in OPINIONS if not (seen.finite and seen.of(INFINITE)) else ():
        if not left:
            break
        with change(model, owners):
            other = look(training=training, whole=whole)
        settled = [key for key in left if other.probes[key].gradient == FOUND]
        left = [key for key in left if key not in settled]
        tail += f"; {len(settled)} {words}" if settled else ""
    if left:
        detail = f"the gradient of {len(left)} blocks is {seen.probes[left[0]].gradient} {mode}, the first is {left[0]}"
        infinite = seen.probes[left[0]].gradient == INFINITE
        return Check("reached", False, detail, "gradient-not-finite" if infinite else "gradient-zero")
    if zeros := sum(probe.all_zero for probe in seen.probes.values()):
        tail += f"; {zeros} see nothing but zeros (a zeroed last gamma)"
    if others := len(plan.insertions) - len(owners):
        tail += f"; {others} more were asked for where no gate can learn"
    return Check("reached", True, f"{len(owners)} blocks ran {mode}, their parameters get a finite gradient{tail}")


def _observe(model: nn.Module, inputs: Inputs, owners: dict[str, str], **how: Any) -> Observed:
    """One forward and its gradients; more where they are random and some block got no gradient."""
    seen = _once(model, inputs, owners, 0, **how)
    for seed in range(1, SEEDS if seen.random else 1):
        if not seen.of(ZERO, MISSING):
            break
        for key, probe in _once(model, inputs, owners, seed, **how).probes.items():
            seen.probes[key].add(probe)
    return seen


def _once(
    model: nn.Module,
    inputs: Inputs,
    owners: dict[str, str],
    seed: int,
    *,
    training: bool = True,
    whole: bool = True,
    every: bool = False,
) -> Observed:
    """``whole``: the gradient is that of a weighted sum of the outputs, else of what the modules return that carry the
    blocks. ``every``: the inputs get a gradient too, and all parameters."""
    seen, made = Observed({key: Probe() for key in owners}), list[Any]()
    handles: list[Any] = []
    try:
        for key, probe in seen.probes.items():
            handles.append(model.get_submodule(key).register_forward_hook(partial(_watch, probe)))
        for path in () if whole else dict.fromkeys(owners.values()):
            handles.append(model.get_submodule(path).register_forward_hook(lambda module, args, out: made.append(out)))
        given = inputs.map(_asking) if every else inputs
        with preserved(model), torch.enable_grad(), undisturbed():
            set_mode(model, training)
            seed_all(seed)
            before = torch.get_rng_state()
            output = model(*given.args, **given.kwargs)
            seen.random = not torch.equal(before, torch.get_rng_state())
            tensors = [t for t in tensors_in(output if whole else made) if t.is_floating_point() or t.is_complex()]
            seen.told = bool(tensors)
            seen.finite = all(bool(torch.isfinite(t).all()) for t in tensors)
            if any(t.requires_grad for t in tensors):
                _differentiate(model, sum(_weighted(t) for t in tensors if t.requires_grad), seen.probes, every)
    except Exception as error:  # foreign code may raise anything
        seen.failure = first_line(error)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _watch(probe: Probe, module: nn.Module, args: Any, output: torch.Tensor) -> None:
    probe.runs += 1
    probe.all_zero = probe.all_zero and not args[0].detach().any().item()


def _asking(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, made of what asks for a gradient; no leaf, for a forward may write it."""
    return tensor.clone().requires_grad_().clone() if tensor.is_floating_point() else tensor


def _weighted(tensor: torch.Tensor) -> torch.Tensor:
    """A sum to which no two values contribute alike."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return (real * _waves(real)).sum()


def _waves(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cos(torch.arange(tensor.numel(), device=tensor.device).float()).reshape(tensor.shape)


def _differentiate(model: nn.Module, loss: Any, probes: dict[str, Probe], every: bool) -> None:
    of = {key: [p for p in model.get_submodule(key).parameters() if p.requires_grad] for key in probes}
    wanted = [p for parameters in of.values() for p in parameters]
    if not wanted:
        found: dict[int, torch.Tensor | None] = {}
    elif every:
        found = _accumulated(model, loss, wanted)
    else:
        try:
            gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
        except RuntimeError:  # a checkpoint of the reentrant kind refuses
            return
        found = dict(zip(map(id, wanted), gradients, strict=True))
    for key, parameters in of.items():
        got = [g for p in parameters if (g := found[id(p)]) is not None]
        if not all(torch.isfinite(g).all() for g in got):
            probes[key].gradient = INFINITE
        elif got or not parameters:
            probes[key].gradient = FOUND if not parameters or any(g.any() for g in got) else ZERO


def _accumulated(model: nn.Module, loss: Any, wanted: list[nn.Parameter]) -> dict[int, torch.Tensor | None]:
    """The gradients of a plain ``backward``; the model's own are kept."""
    kept = [(p, p.grad) for p in model.parameters()]
    try:
        for parameter, _ in kept:
            parameter.grad = None
        loss.backward()
        return {id(p): p.grad for p in wanted}
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient


@contextmanager
def _changed(parameters: Iterable[nn.Parameter], change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Other values for a while, in memory of their own: theirs may be mapped from a file."""
    values = [(p, p.data) for p in parameters]
    try:
        for parameter, value in values:
            parameter.data = change(value)
        yield
    finally:
        for parameter, value in values:
            parameter.data = value


def _no_zeros(model: nn.Module, owners: dict[str, str]) -> AbstractContextManager[None]:
    """Every parameter that is zero throughout is near a half, those of the blocks apart."""
    blocks = tuple(f"{key}." for key in owners)
    named = ((n, p) for n, p in model.named_parameters() if not n.startswith(blocks) and p.is_floating_point())
    return _changed([p for _, p in named if not p.any()], lambda t: (0.5 + 0.1 * _waves(t)).to(t.dtype))


def _as_is(model: nn.Module, owners: dict[str, str]) -> AbstractContextManager[None]:
    return _changed((), lambda t: t)


def _small(model: nn.Module, owners: dict[str, str]) -> AbstractContextManager[None]:
    """The weights of the blocks are near zero, where no gate is saturated."""
    return _changed([p for key in owners for p in model.get_submodule(key).parameters()], lambda t: t * 1e-3)


# What a gradient of zero, or one that is not finite because the outputs are not, comes from: words, whether the outputs
# are asked or what the blocks' own modules return, and under which change the gradient is there.
Change = Callable[[nn.Module, dict[str, str]], AbstractContextManager[None]]
OPINIONS: tuple[tuple[str, bool, Change], ...] = (
    ("are multiplied by a parameter that is zero", True, _no_zeros),
    ("get it from their own module's value, not from the outputs on this probe", False, _as_is),
    ("have saturated gates on this probe", False, _small),
)
