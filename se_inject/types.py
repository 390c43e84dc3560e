"""The plain data that the parts hand to each other: frozen, JSON in and out, no torch."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

SCHEMA_VERSION = 2

CarrierKind = Literal["slot", "source", "append", "sequential_after", "wrap_output", "wrap_input", "graph"]
INITS = ("identity", "absorb", "paper")  # the starts of a block
REWRITTEN = ("source", "wrap_output", "wrap_input")  # the kinds whose module becomes an instance of a generated class
Status = Literal["insert", "skip"]
InputKind = Literal["batch", "list", "pair"]
T = TypeVar("T")


class Shown:
    """What a notebook shows as a table; how, says the renderer, which stands above and is set by the API."""

    renderer: ClassVar[Callable[[Any], str] | None] = None

    def _repr_html_(self) -> str | None:
        return Shown.renderer(self) if Shown.renderer is not None else None


@dataclass(frozen=True)
class Reason:
    """Why: a code for programs, of ``reasons.REASONS``, and a text for people, which may change."""

    code: str
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Position:
    """An expression in the source of a method: lines from the method's first line (0), columns in UTF-8 bytes."""

    module: str  # module of the class that defines the method
    cls: str  # qualified name of that class
    method: str
    line: int
    column: int
    end_line: int
    end_column: int
    digest: str  # SHA-256 of the method's source: the position means nothing in another version


@dataclass(frozen=True)
class Carrier:
    """How the new child comes to run at a site.

    ``slot``: an unused attribute that the forward already calls is filled; ``source``: one call is inserted in the
    owner's own method; ``append``: the block becomes the last child of a ``Sequential``; ``sequential_after``: the
    child of a ``Sequential`` behind another one; ``wrap_output``: the child whose value it is gates what it returns;
    ``wrap_input``: the child that takes the value gates it first; ``graph``: a node is spliced into a ``GraphModule``.
    """

    kind: CarrierKind
    path: str  # the module that gets the new child
    name: str  # the new child's name in it
    position: Position | None = None  # source: the expression that is wrapped
    node: str | None = None  # graph: the node after which the block stands; sequential_after: the child
    user: str | None = None  # graph: the one user of the node that gets the block's output, None for all
    others: tuple[Position, ...] = ()  # source: where a branch on ``training`` makes the same value in the other mode


@dataclass(frozen=True)
class Site:
    """A place in the model where a block can stand, with everything the rules may ask about it."""

    id: str  # stable and readable: "layer1.0:standard"
    placement: str
    owner: str  # path of the module whose forward holds the place
    cls: str  # its class
    channels: int
    axis: int  # of the channels
    shape: tuple[int, ...]
    stage: int  # rank of the resolution among the model's sites, 1 is the largest
    order: int  # position in the order of execution
    block_channels: int  # channels that enter the block
    block: str  # id of the innermost residual block around it, or the owner's path
    calls: int  # how often one forward runs it
    concat_id: str = ""  # id of the concatenation that it is a branch of, if any
    kernel: tuple[int, ...] = ()  # of the convolution before it
    depthwise: bool = False
    projects: bool = False  # the next 1x1 convolution has no more channels out than in
    nested: int = 0  # residual blocks inside this one's branch
    gated: Reason | None = None  # why it counts as already gated
    gate_on_branch: Reason | None = None  # a gate elsewhere on the residual branch that ends here
    carrier: Carrier | None = None
    obstacle: Reason | None = None  # why no carrier could be found
    absorb: str = ""  # path of the batch norm that `absorb` doubles
    absorb_obstacle: Reason | None = None  # why `absorb` is not possible here
    note: Reason | None = None  # said in the report: for instance that another path passes by it
    no_gradient: Reason | None = None  # why a gate here could not learn
    dtype: str = ""  # of the value, where that of the layers beside it is another: the block takes it

    @property
    def layout(self) -> str:
        """``NCHW``, ``NHWC``, ``NLC`` and so on, from rank and channel axis."""
        rank = len(self.shape)
        space = {2: "", 3: "L", 4: "HW", 5: "DHW"}.get(rank, f"{rank - 2}d")
        return "NC" + space if self.axis == 1 else "N" + space + "C"


@dataclass(frozen=True)
class BlockSpec:
    """Which block, and with which options: ``{"name": "se", "rd_ratio": 0.0625, ...}`` in rules."""

    name: str = "se"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """What happens at one site, and why. ``kwargs`` are the block's constructor arguments, all resolved."""

    site: Site
    status: Status
    reason: Reason
    block: str = "se"
    init: str = "identity"
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Path of the new module: ``layer1.0.se``."""
        carrier = self.site.carrier
        assert carrier is not None
        return f"{carrier.path}.{carrier.name}" if carrier.path else carrier.name


@dataclass(frozen=True)
class Argument:
    """A tensor, or a plain value, somewhere in the arguments of a forward."""

    path: str  # "0": the first argument, "0.1": the second item of it, "mask": a keyword argument
    dtype: str = ""  # of a tensor; empty for a plain value
    shape: tuple[int, ...] = ()
    value: Any = None

    def __str__(self) -> str:
        text = f"{self.dtype}{list(self.shape)}" if self.dtype else json.dumps(self.value, sort_keys=True)
        return text if self.path.isdecimal() else f"{self.path}={text}"


@dataclass(frozen=True)
class InputSpec:
    """The example inputs as data: how they were made, and what they hold."""

    kind: InputKind | None = None  # made from a shape: one batch, a list of images, or two batches; None: given
    shape: tuple[int, ...] = ()  # that they were made from, without the batch
    arguments: tuple[Argument, ...] = ()

    def __str__(self) -> str:
        return ", ".join(map(str, self.arguments))


@dataclass(frozen=True)
class Baseline:
    """What the original was, for `verify` without it: hashes of its tensors, and its outputs on a seeded probe."""

    tensors: dict[str, str] = field(default_factory=dict)  # name -> SHA-256 of its bytes
    probe: tuple[int, ...] = ()  # shape without the batch, empty when the probe was not made from a shape
    outputs: tuple[str, ...] = ()  # SHA-256 of each output tensor
    samples: tuple[float, ...] = ()  # the first values of the first output, for another machine's arithmetic


@dataclass(frozen=True)
class Plan(Shown):
    """Every site found and what is to be done there; re-applied to a fresh model it needs no rules."""

    model: str  # "timm:resnet18", or the class of a model given through the API
    model_args: dict[str, Any]
    inputs: InputSpec
    fingerprint: str  # SHA-256 of the keys, shapes and classes of the model
    rules: dict[str, Any]
    seed: int
    decisions: tuple[Decision, ...]
    notes: tuple[Reason, ...] = ()  # fallbacks taken while tracing
    baseline: Baseline = field(default_factory=Baseline)
    trained: Baseline | None = None  # what was saved, if it was trained since
    schema: int = SCHEMA_VERSION

    @property
    def saved(self) -> Baseline:
        """What the weights of a folder are to give: the original's outputs, or the trained model's."""
        return self.trained or self.baseline

    @property
    def whose(self) -> str:
        """Whose outputs and tensors ``saved`` holds, in words."""
        return "those saved after training" if self.trained else "the original's"

    @property
    def insertions(self) -> tuple[Decision, ...]:
        return tuple(d for d in self.decisions if d.status == "insert")

    @property
    def skips(self) -> tuple[Decision, ...]:
        return tuple(d for d in self.decisions if d.status == "skip")


@dataclass(frozen=True)
class Cost(Shown):
    """What one forward of a model costs at the example's size, per sample where it depends on the batch."""

    parameters: int
    macs: int  # multiply-accumulates of convolutions, linear layers and matrix products; FLOPs = 2 x MACs
    elementwise: int  # additions, multiplications, activations, norms and poolings, one per element
    activation_bytes: int  # outputs of all leaf modules
    uncounted: dict[str, int] = field(default_factory=dict)  # operator -> calls that no column counts

    @property
    def flops(self) -> int:
        return 2 * self.macs


@dataclass(frozen=True)
class SiteCost:
    """What one insertion adds."""

    id: str
    parameters: int
    macs: int
    elementwise: int
    activation_bytes: int


@dataclass(frozen=True)
class Check:
    """One check after the splice. ``passed`` is None when it did not apply; ``detail`` and ``code`` say why."""

    name: str
    passed: bool | None
    detail: str
    code: str = ""  # of ``reasons.REASONS``; empty when it passed


@dataclass(frozen=True)
class GraphNode:
    """One node of a graph that the report draws."""

    name: str
    label: str
    inputs: tuple[str, ...] = ()
    new: bool = False  # the inserted block


@dataclass(frozen=True)
class Rewrite:
    """The methods of a class that were rewritten, before and after; ``before`` is empty where it was not kept."""

    before: str
    after: str


@dataclass(frozen=True)
class Artifact:
    """A file that was written, by its path in the output folder."""

    path: str
    bytes: int


@dataclass(frozen=True)
class GateStats:
    """How far the channel gate of one inserted block is open on a batch; no figures where ``note`` says why.

    By the mean of its gate over the batch a channel is dead (nearly nothing passes) or saturated (the gate is at its
    highest). At both ends a sigmoid is flat, so that such a gate hardly learns any more.
    """

    block: str  # path of the block
    kind: str  # its class
    highest: float = 1.0  # the gate lies between 0 and this
    mean: float | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None
    dead: float | None = None  # share of the channels whose mean is below 0.1 of the range
    saturated: float | None = None  # share of the channels whose mean is above 0.9 of the range
    note: Reason | None = None


@dataclass(frozen=True)
class Pruned(Shown):
    """What pruning took out, and what that saves."""

    deviations: dict[str, float]  # block -> how far it was from the identity
    threshold: float
    before: Cost  # of the model with all blocks
    after: Cost
    change: float  # of the outputs on the batch, at most, divided by the largest output

    @property
    def dropped(self) -> tuple[str, ...]:
        return tuple(block for block, value in self.deviations.items() if value <= self.threshold)

    @property
    def kept(self) -> tuple[str, ...]:
        return tuple(block for block in self.deviations if block not in self.dropped)


@dataclass(frozen=True)
class Report(Shown):
    """Everything that the renderers show; they add nothing of their own."""

    plan: Plan
    before: Cost
    after: Cost
    sites: tuple[SiteCost, ...]  # one for each insertion, in plan order
    checks: tuple[Check, ...]
    source: dict[str, Any] = field(default_factory=dict)  # where the weights came from, what was unwrapped
    versions: dict[str, str] = field(default_factory=dict)
    artifacts: tuple[Artifact, ...] = ()
    rewritten: dict[str, Rewrite] = field(default_factory=dict)  # by generated class
    graphs: dict[str, tuple[GraphNode, ...]] = field(default_factory=dict)  # site -> the graph around it
    gates: tuple[GateStats, ...] = ()  # of the example batch, when it was no mere shape
    schema: int = SCHEMA_VERSION


def to_dict(value: Any) -> Any:
    """Dataclasses to plain JSON data, all the way down."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_dict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_dict(item) for item in value]
    return value


def dump(plan: Plan) -> str:
    """The plan as JSON, the same text for the same plan."""
    return json.dumps(to_dict(plan), indent=1, sort_keys=True, allow_nan=False) + "\n"


def from_dict(cls: type[T], data: Any) -> T:
    """The dataclass ``cls`` from plain data; unknown and missing fields and wrong types are a ``ValueError``."""
    return typing.cast(T, _read(cls, data, cls.__name__))


def _read(kind: Any, data: Any, where: str) -> Any:
    if kind is Any:
        return data
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in args:
            return None
        return _read(next(a for a in args if a is not type(None)), data, where)
    if origin is Literal:
        if data not in args:
            raise ValueError(f"{where}: expected one of {', '.join(map(repr, args))}, found {data!r}")
        return data
    if origin is tuple:
        if not isinstance(data, list | tuple):
            raise ValueError(f"{where}: expected a list, found {type(data).__name__}")
        return tuple(_read(args[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if origin is dict or kind is dict:
        if not isinstance(data, dict):
            raise ValueError(f"{where}: expected a mapping, found {type(data).__name__}")
        return {str(k): _read(args[1] if args else Any, v, f"{where}.{k}") for k, v in data.items()}
    if dataclasses.is_dataclass(kind):
        if not isinstance(data, dict):
            raise ValueError(f"{where}: expected a mapping, found {type(data).__name__}")
        hints = typing.get_type_hints(kind)
        fields = {f.name: f for f in dataclasses.fields(kind)}
        if unknown := sorted(set(data) - set(fields)):
            raise ValueError(f"{where}: unknown field {unknown[0]!r}")
        for name, f in fields.items():
            required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
            if required and name not in data:
                raise ValueError(f"{where}: field {name!r} is missing")
        make: Any = kind
        return make(**{name: _read(hints[name], data[name], f"{where}.{name}") for name in data})
    if (isinstance(data, bool) and kind is not bool) or not isinstance(data, kind):
        raise ValueError(f"{where}: expected {kind.__name__}, found {data!r}")
    return data
