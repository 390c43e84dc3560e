"""How a block comes to run at a place: which module carries it, and what has to change there.

Tried in this order: an unused attribute that the forward already calls (timm's ``se = None``), the owner's own source,
the child whose output the place is (a loop hides the expression), and for a ``GraphModule`` its graph.
"""

from __future__ import annotations

import ast
import copy
import inspect
import operator
from collections import Counter
from types import MethodType
from typing import Any

from torch import fx, nn
from torch.nn.utils import parametrize

from se_inject.inputs import Inputs
from se_inject.search.chains import steps
from se_inject.search.ops import HOMOGENEOUS, data, label, module_of, op, result
from se_inject.trace.calls import CONTAINERS, Call, Trace, graphs_of, is_leaf, record_of
from se_inject.trace.recorder import record
from se_inject.trace.source import (
    TORCH_DIR,
    CodeSpan,
    current_code,
    first_argument,
    method_source,
    methods,
    parse,
    position,
)
from se_inject.types import Carrier, Position, Reason

SLOTS = ("se", "attn")  # what the zoos call the attribute that holds channel attention
CHILD = "se"


class Index:
    """What the search for carriers asks of a trace, counted once."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.runs: Counter[str] = Counter()  # module path -> calls in one forward
        self.spans: Counter[tuple[Call, Any]] = Counter()  # (call, expression) -> nodes that it made
        self.ran: Counter[Any] = Counter()  # (module path, expression, what it calls) -> times in one forward
        self.parameters: Counter[int] = Counter()  # parameter -> modules that hold it
        self.slots: dict[Any, str | None] = {}
        for call in trace.calls:
            if call.parent is None:
                self.runs[call.path] += 1
            for node in call.graph.nodes:
                if node.op == "call_module":
                    self.runs[record_of(node).path] += 1
                span = record_of(node).span
                if span is not None:
                    self.spans[call, (span.code, span.extent)] += not self._observes(node)
                    self.ran[call.path, span, node.target] += 1
        for module in trace.root.modules():
            for parameter in module._parameters.values():
                self.parameters[id(parameter)] += 1

    def _observes(self, node: fx.Node) -> bool:
        """FloatFunctional ends each of its operations with an observer, which hands on what the expression made."""
        parent, _, name = record_of(node).path.rpartition(".")
        return record_of(node).identity and bool(name) and is_leaf(_submodule(self.trace.root, parent))


def carrier(index: Index, call: Call, node: fx.Node) -> tuple[Carrier | None, Reason | None]:
    """The carrier for a block behind ``node``, or the reason why there is none."""
    if isinstance(call.module, fx.GraphModule):
        return _graph(call, node)
    slot = _slot(index, call, node)
    if slot is not None:
        return Carrier("slot", call.path, slot), None
    found, reason = _source(index, call, node)
    if found is not None or node.op != "call_module":
        return found, reason
    found, other = _wrap_output(index, call, node)
    return found, other and reason and Reason(reason.code, f"{reason}; {other}")


def edge(index: Index, call: Call, node: fx.Node, user: fx.Node, name: str) -> tuple[Carrier | None, Reason | None]:
    """The carrier for a block between ``node`` and one user of it, or the reason why there is none."""
    if isinstance(call.module, fx.GraphModule):
        return _graph(call, node, record_of(user).fx_node)
    operands: list[int | str] = [i for i, arg in enumerate(user.args) if arg is node]
    operands += [key for key, arg in user.kwargs.items() if arg is node]
    if len(operands) != 1:
        return None, Reason("taken-twice", f"{user.name} takes the value {len(operands)} times, or in a list")
    return _source(index, call, user, name, operands[0])


def _graph(call: Call, node: fx.Node, user: str | None = None) -> tuple[Carrier | None, Reason | None]:
    place = record_of(node).fx_node or node.name
    if len({_upstream(graph, place, user) for graph in graphs_of(call.module)}) > 1:
        kind = type(call.module).__name__
        return None, Reason("two-graphs", f"{kind} has a graph for each mode, and {place} is not the same in both")
    owner = record_of(node).path.rpartition(".")[0].removeprefix(call.path).lstrip(".")
    name = f"{owner}.{CHILD}" if owner else CHILD
    return Carrier("graph", call.path, name, node=place, user=user), None


def _upstream(graph: fx.Graph, place: str, user: str | None) -> frozenset[str]:
    """The modules and parameters that a node is computed from; empty where the graph has no such node."""
    node = next((node for node in graph.nodes if node.name == place), None)
    if node is None or (user is not None and user not in {n.name for n in node.users}):
        return frozenset()
    before, todo = set(), [node]
    while todo:
        if (earlier := todo.pop()) not in before:
            before.add(earlier)
            todo += earlier.all_input_nodes
    return frozenset(str(n.target) for n in before if n.op in ("call_module", "get_attr", "placeholder"))


def _submodule(module: nn.Module, path: str) -> nn.Module:
    return module.get_submodule(path) if path else module


def _source(
    index: Index, call: Call, node: fx.Node, base: str = CHILD, operand: int | str | None = None
) -> tuple[Carrier | None, Reason | None]:
    span = record_of(node).span
    if span is None and node.target is operator.getitem:
        (several,) = node.all_input_nodes
        return None, Reason("one-of-several", f"it is one of several values that {label(several)} returns")
    if span is None:
        return None, Reason("no-position", "Python kept no position of it in the source")
    if span.code.co_filename.startswith(TORCH_DIR):
        return None, Reason("torch-loop", f"{type(call.module).__name__} runs it in a loop of torch's own")
    if not span.direct:
        return None, Reason("helper", f"it is computed inside a function that {span.cls.__name__}.{span.method} calls")
    if index.spans[call, (span.code, span.extent)] > 1:
        text = f"{span.cls.__name__}.{span.method} runs the expression more than once in one forward (a loop)"
        return None, Reason("loop", text)
    if isinstance(call.module, CONTAINERS):
        text = f"{type(call.module).__name__} runs all its children, and would run a new one too"
        return None, Reason("container", text)
    if reason := _unfit(call.module):
        return None, reason
    if current_code(type(call.module), span.method) is not span.code:
        text = f"{span.cls.__name__}.{span.method} is overridden in {type(call.module).__name__}"
        return None, Reason("overridden", text)
    try:
        place = position(span, operand, node.op == "call_method")
    except ValueError as error:
        return None, Reason("no-source", str(error))
    if _dropped(span, place):
        text = f"{span.cls.__name__}.{span.method} makes it by a statement whose value is dropped"
        return None, Reason("value-dropped", text)
    return Carrier("source", call.path, base, place), None


def _dropped(span: CodeSpan, place: Position) -> bool:
    """Whether the expression is a whole statement (``x.relu_()``): a call around it would change nothing."""
    extent = (place.line + 2, place.column, place.end_line + 2, place.end_column)
    return any(
        (node.value.lineno, node.value.col_offset, node.value.end_lineno, node.value.end_col_offset) == extent
        for node in ast.walk(parse(method_source(span.code)[0]))
        if isinstance(node, ast.Expr)
    )


def _wrap_output(index: Index, call: Call, node: fx.Node) -> tuple[Carrier | None, Reason | None]:
    path, module = record_of(node).path, module_of(node)
    name = type(module).__name__
    if index.runs[path] != index.runs[call.path]:
        text = f"{path} ({name}) is called {index.runs[path]} times in one forward, and not only here"
        return None, Reason("called-again", text)
    if isinstance(module, nn.modules.batchnorm._NormBase):
        # Conversions (SyncBatchNorm, freezing, fusion) put another module in its place, and the block would be gone.
        if result(call) is node and type(call.module).forward is nn.Sequential.forward:
            return Carrier("append", call.path, CHILD), None
        return _wrap_input(index, call, node)
    if type(module).forward is nn.Sequential.forward and follows_class(module):
        return Carrier("append", path, CHILD), None
    if reason := _unfit(module):
        return None, reason
    if isinstance(module, CONTAINERS):
        if type(call.module).forward is not nn.Sequential.forward or any(map(str.isdecimal, call.module._modules)):
            return None, Reason("container", f"{name} runs all its children, and would run a new one too")
        child = str(node.target)  # its siblings have names, and keep them
        return Carrier("sequential_after", call.path, f"{child}_{CHILD}", node=child), None
    return Carrier("wrap_output", path, CHILD), None


def _wrap_input(index: Index, call: Call, node: fx.Node) -> tuple[Carrier | None, Reason | None]:
    """The next child gates what it takes, when it is the only one that does."""
    path, name = record_of(node).path, type(module_of(node)).__name__
    reason = Reason("replaced", f"{path} is a {name}, which conversions replace, and the block with it")
    user = next(iter(node.users)) if len(node.users) == 1 else None
    if user is None or user.op != "call_module" or user.args[:1] != (node,) or isinstance(call.module, fx.GraphModule):
        return None, reason
    module, user_path = module_of(user), record_of(user).path
    if index.runs[user_path] != index.runs[call.path] or isinstance(module, CONTAINERS) or _unfit(module):
        return None, reason
    code = current_code(type(module), "forward")
    try:
        text, _ = method_source(code) if code is not None else ("", "")
        first_argument(parse(text), text)
    except ValueError:
        return None, reason
    return Carrier("wrap_input", user_path, CHILD), None


def follows_class(module: nn.Module) -> bool:
    """Whether the module runs the forward of its class, directly or under decorators set on the instance."""
    forward = module.__dict__.get("forward")
    if forward is None:
        return True
    forward = inspect.unwrap(forward, stop=lambda inner: isinstance(inner, MethodType))
    own = inspect.getattr_static(type(module), "forward")
    return isinstance(forward, MethodType) and forward.__self__ is module and forward.__func__ is own


def _unfit(module: nn.Module) -> Reason | None:
    """Why a module cannot become an instance of a generated class."""
    name = type(module).__name__
    if not follows_class(module) or isinstance(module, fx.GraphModule):
        text = f"forward is set on the instance of {name}, and is not its class's: give it in a subclass"
        return Reason("own-forward", text)
    if parametrize.is_parametrized(module):
        text = f"{name} is parametrized: its class is torch's own until the parametrization is removed"
        return Reason("parametrized", text)
    return None


def is_free(root: nn.Module, path: str) -> bool:
    """Whether a new child may sit at ``path``: nothing is there, or a ``None`` of the instance that no method reads."""
    parent, _, name = path.rpartition(".")
    module = _submodule(root, parent)
    if not hasattr(module, name):
        return True
    own = name in module.__dict__ or name in module._modules
    return own and getattr(module, name) is None and name not in _read(type(module))


def _read(cls: type) -> set[str]:
    """Names that any method of the class mentions, its constructor apart."""
    return {name for code, (method, _) in methods(cls).items() if method != "__init__" for name in code.co_names}


def _slot(index: Index, call: Call, node: fx.Node) -> str | None:
    """The attribute to fill: an ``Identity`` that runs exactly here, or a ``None`` that would, when it is filled."""
    module, names = call.module, _read(type(call.module))
    if type(module).forward is nn.Sequential.forward:  # its children run one after another, under any name
        found = (name for name, child in module.named_children() if type(child) is nn.Identity)
        return next((name for name in found if reaches(node, _path(call, name))), None)
    for name in SLOTS:
        if name not in names or not hasattr(module, name):
            continue
        value = getattr(module, name)
        if type(value) is nn.Identity and reaches(node, _path(call, name)):
            return name
        if value is None:
            # One trial for each kind of block: the same class, called to the same effect.
            span = record_of(node).span
            key = (type(module), name, span, node.name, tuple(str(n.target) for n in call.graph.nodes))
            if key not in index.slots:
                index.slots[key] = _try_slot(index, call, node, name)
            if index.slots[key]:
                return name
    return None


def _try_slot(index: Index, call: Call, node: fx.Node, name: str) -> str | None:
    """Fill the ``None`` with an ``Identity``, run the skeleton's module again, and look where it ran."""
    module = call.module
    registered = name in module._modules
    setattr(module, name, filler := nn.Identity())
    names = copy.copy(index.trace.names)
    names.paths = {**names.paths, id(filler): _path(call, name)}
    try:
        again = record(names, module, Inputs(call.args, call.kwargs))[0]
        same = [n for n in again.graph.nodes if record_of(n).span == record_of(node).span and n.op == node.op]
        extra = len(again.graph.nodes) - len(call.graph.nodes)
        return name if len(same) == 1 and extra == 1 and reaches(same[0], _path(call, name)) else None
    except Exception:  # the forward does something else with a filled slot: then it is not one
        return None
    finally:
        delattr(module, name)
        (module._modules if registered else module.__dict__)[name] = None


def _path(call: Call, name: str) -> str:
    return f"{call.path}.{name}" if call.path else name


def reaches(node: fx.Node, path: str) -> bool:
    """Whether the value goes to the Identity at ``path``, and to nothing else, through other identities at most."""
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.op in ("call_function", "call_method") and op(node).kind == "pass":
            continue  # x + 0
        if node.op != "call_module" or not record_of(node).identity:
            return False
        if record_of(node).path == path:
            return True
        if type(module_of(node)) is not nn.Identity:
            return False
    return False


def batch_norm(index: Index, node: fx.Node) -> tuple[str, Reason | None]:
    """Path of the batch norm whose doubling a halved gate at ``node`` undoes exactly, or the reason why none does."""
    current: fx.Node | None = node
    while current is not None:
        for o, inner in reversed(steps(current)):
            if o.kind == "norm":
                return _affine(index, o.path)
            if o.kind not in ("pass", "scale", "permute", "pool", "blur") and o.name not in HOMOGENEOUS:
                stands = f"between it and a batch norm stands {o.name or o.kind}"
                return "", Reason("not-scaling", f"{stands}, which does not scale with its input")
            if len(data(inner)) != 1 or len(data(inner)[0].users) != 1:
                return "", Reason("used-elsewhere", "the value before it is used elsewhere too")
        current = data(current)[0] if len(data(current)) == 1 else None
        if current is not None and len(current.users) != 1:
            return "", Reason("used-elsewhere", "the value before it is used elsewhere too")
    return "", Reason("no-batch-norm", "no batch norm stands before it")


def _affine(index: Index, path: str) -> tuple[str, Reason | None]:
    module: Any = _submodule(index.trace.root, path)
    name = f"{path or 'the model itself'} ({type(module).__name__})"
    norm: bool = isinstance(module, nn.modules.batchnorm._BatchNorm)
    if not norm:
        return "", Reason("not-affine", f"{name} is not a batch norm with weight and bias")
    if parametrize.is_parametrized(module):
        return "", Reason("parametrized", f"{name} is parametrized")
    if module.weight is None or module.bias is None:
        return "", Reason("not-affine", f"{name} has no weight and bias")
    if index.runs[path] != 1:
        return "", Reason("called-again", f"{name} is called {index.runs[path]} times in one forward")
    if any(index.parameters[id(p)] != 1 for p in (module.weight, module.bias)):
        return "", Reason("shared-weight", f"{name} shares its weight with another module")
    return path, None
