"""The recorder behind a trace: a ``TorchFunctionMode`` with hooks on every module, that writes one graph for each call.

fx's own tracer replaces tensors by proxies and stops where Python asks for a value (a shape, a length, a flag). Here
the tensors stay tensors, on the meta device, and what is called on them is written down: control flow, lists, dicts and
result objects need no special case, and every node knows its shape.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._device import _device_constructors

from se_inject.guard import eager
from se_inject.inputs import Inputs, tensor_leaves
from se_inject.random_state import undisturbed
from se_inject.trace.calls import KEY, Call, Names, NodeRecord, is_leaf, record_of
from se_inject.trace.source import CodeSpan, current_span

SHAPE_KEPT = {F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm}
# Values that an fx node may hold as they are; anything else is written as its type's name.
PLAIN = (int, float, str, bool, type(None), torch.dtype, torch.device, torch.memory_format, torch.layout, complex)


def record(
    names: Names,
    module: nn.Module,
    inputs: Inputs,
    within: Collection[nn.Module] = (),
    mark: Callable[[Call, fx.Node, torch.Tensor], torch.Tensor] | None = None,
) -> list[Call]:
    """The calls that ``module`` makes on ``inputs``, itself first; ``names`` are those of the whole skeleton.

    ``within``: the modules to look at, when not all of ``module``'s. ``mark``: what stands in for each value of its
    own, in a forward with gradients.
    """
    recorder = Recorder(names, mark)
    handles: list[Any] = []
    modules = within or list(module.modules())
    graph_modules = [m for m in modules if isinstance(m, fx.GraphModule)]
    try:
        for graph_module in graph_modules:
            recorder.interpret(graph_module)
        for child in modules:
            handles.append(child.register_forward_pre_hook(recorder.enter, with_kwargs=True))
            # Called after an exception too: a forward may catch it and go on.
            handles.append(child.register_forward_hook(recorder.leave, with_kwargs=True, always_call=True))
        # Made inside: set_grad_enabled acts when it is made, and inference_mode puts back what it found.
        with torch.inference_mode(False), torch.set_grad_enabled(mark is not None), undisturbed(), eager(), recorder:
            module(*inputs.args, **inputs.kwargs)
    finally:
        for handle in handles:
            handle.remove()
        for graph_module in graph_modules:
            graph_module.__dict__.pop("forward", None)
    return recorder.calls


class Recorder(TorchFunctionMode):
    """Writes down what happens to tensors between ``enter`` and ``leave`` of each module."""

    def __init__(self, names: Names, mark: Callable[[Call, fx.Node, torch.Tensor], torch.Tensor] | None = None) -> None:
        super().__init__()
        self.mark = mark
        self.paths, self.constants, self.meta = names.paths, names.constants, names.meta
        self.calls: list[Call] = []
        self.stack: list[Call] = []
        self.pending: list[tuple[Any, Any, CodeSpan | None, dict[int, int | None], str]] = []
        self.made: dict[int, tuple[torch.Tensor, Call]] = {}
        self.leaf = 0  # depth inside a leaf module: nothing is recorded there
        self.order = 0
        self.fx_node = ""  # of the GraphModule that is being interpreted

    # -- modules ----------------------------------------------------------------------------------------------------
    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.leaf:
            self.leaf += 1
            return
        parent = self.stack[-1] if self.stack else None
        versions = {id(t): version(t) for t in tensor_leaves((args, kwargs))}
        if parent is not None:
            nodes = self._argument(parent, args), self._argument(parent, kwargs)
            self.pending.append((*nodes, current_span(parent.module), versions, self.fx_node))
        if parent is not None and is_leaf(module):
            self.leaf = 1
            return
        call = Call(self.paths[id(module)], module, args, kwargs, parent, self.order)
        alone = {id(value) for value in (*args, *kwargs.values())}
        for tensor in tensor_leaves((args, kwargs)):
            if id(tensor) not in call.nodes:
                node = call.graph.placeholder(f"arg{len(call.nodes)}")
                outer = self._node(parent, tensor) if parent is not None else None
                node.meta[KEY] = NodeRecord(alone=id(tensor) in alone, outer=outer)
                self._note(call, tensor, node, made=False)
        self.calls.append(call)
        self.stack.append(call)

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        call = None
        if self.leaf:
            self.leaf -= 1
            if self.leaf:
                return None
        else:
            call = self.stack.pop()
            call.output = output
            call.graph.output(self._argument(call, output))
        if not self.stack:
            return None
        parent = self.stack[-1]
        node_args, node_kwargs, span, versions, self.fx_node = self.pending.pop()
        if call is not None and call.hidden:
            node_kwargs = {**node_kwargs, "?": tuple(call.hidden)}
        path, above = self.paths[id(module)], parent.path
        target = path[len(above) + 1 :] if above and path.startswith(above + ".") else path
        node = parent.graph.create_node("call_module", target, node_args, node_kwargs)
        node.meta[KEY] = NodeRecord(
            order=self._tick(), span=span, fx_node=self.fx_node, module=module, path=path, call=call
        )
        if call is not None:
            call.node, parent.children[call] = node, node
        return self._results(parent, node, output, versions)

    # -- functions and methods of tensors ---------------------------------------------------------------------------
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.leaf or not self.stack:
            return self._compute(func, args, kwargs)
        versions = {id(t): version(t) for t in _tensors((args, kwargs))}
        call = self.stack[-1]
        result = self._compute(func, args, kwargs)
        kind, target = describe(func, args)
        if target is operator.setitem and isinstance(args[0], torch.Tensor):
            results: Any = args[0]
        elif not any(True for _ in _tensors(result)):
            return result  # a shape, a flag, a size: no data flow
        else:
            results = result
        node_args = self._argument(call, args[:1] if target is getattr else args)
        if target is getattr:
            node_args = (*node_args, func.__self__.__name__)  # type: ignore[attr-defined]
        node = call.graph.create_node(kind, target, node_args, self._argument(call, kwargs))
        node.meta[KEY] = NodeRecord(order=self._tick(), span=current_span(call.module), fx_node=self.fx_node)
        # What writes (x.add_(y), x[i] = y, out=x) is often called for its effect alone: its tensor is that node now.
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        writes = target is operator.setitem or (name.endswith("_") and not name.endswith("__")) or "out" in kwargs
        new = self._results(call, node, results, versions, alias=not writes)
        return result if target is operator.setitem else new

    # -- helpers ----------------------------------------------------------------------------------------------------
    def _compute(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.meta:
            return func(*args, **kwargs)
        if func in SHAPE_KEPT and args and args[0].is_meta:
            # Its meta kernel is written in Python, and takes half the time of a trace. A negative keeps the history.
            return args[0].neg() if args[0].requires_grad else torch.empty_like(args[0])
        if func in _device_constructors() and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)

    def interpret(self, module: fx.GraphModule) -> None:
        """Let the skeleton's ``GraphModule`` run node by node, so that each record names the node it came from."""
        recorder, parameters = self, inspect.signature(type(module).forward)

        class Steps(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                recorder.fx_node = n.name
                try:
                    return super().run_node(n)
                finally:
                    recorder.fx_node = ""

        def forward(*args: Any, **kwargs: Any) -> Any:
            bound = parameters.bind(module, *args, **kwargs)
            bound.apply_defaults()
            return Steps(module, garbage_collect_values=False).run(*bound.args[1:])

        module.__dict__["forward"] = forward

    def _tick(self) -> int:
        self.order += 1
        return self.order

    def _results(
        self, call: Call, node: fx.Node, output: Any, versions: dict[int, int | None], alias: bool = True
    ) -> Any:
        """Bind the output's tensors to ``node``. A tensor that went in and came out gets a name of its own, so that
        the value before and the value after stay two nodes."""
        leaves, spec = pytree.tree_flatten(output)
        paths = pytree.tree_flatten_with_path(output)[0] if len(leaves) != 1 or spec.num_nodes > 1 else []
        for i, value in enumerate(leaves):
            if not isinstance(value, torch.Tensor):
                continue
            same = id(value) in versions
            if same and alias:
                before = versions[id(value)]
                record_of(node).identity = before is not None and before == version(value) and len(leaves) == 1
                self.leaf += 1
                tracked = value.requires_grad and torch.is_grad_enabled()
                leaves[i] = value = value.view_as(value) if tracked else value.detach()
                self.leaf -= 1
            if self.mark is not None and len(leaves) == 1:
                self.leaf += 1
                leaves[i] = value = self.mark(call, node, value)
                self.leaf -= 1
            part = node
            if paths:
                part = node
                for key in paths[i][0]:
                    part = call.graph.call_function(operator.getitem, (part, _key(key)))
                    part.meta[KEY] = NodeRecord(order=record_of(node).order)
            self._note(call, value, part)
        return pytree.tree_unflatten(leaves, spec)

    def _note(self, call: Call, tensor: torch.Tensor, node: fx.Node, made: bool = True) -> None:
        record_of(node).shape, record_of(node).dtype = tuple(tensor.shape), tensor.dtype
        call.nodes[id(tensor)] = (tensor, node)
        if made or id(tensor) not in self.made:
            self.made[id(tensor)] = (tensor, call)

    def _node(self, call: Call, tensor: torch.Tensor) -> fx.Node:
        found = call.nodes.get(id(tensor))
        if found is not None:
            return found[1]
        if id(tensor) in self.constants:
            node = call.graph.create_node("get_attr", self.constants[id(tensor)])
            record_of(node).parameter = isinstance(tensor, nn.Parameter)
        else:
            _, maker = self.made.get(id(tensor), (None, None))
            below = next((c for c in maker.ancestors() if c.parent is call), None) if maker is not None else None
            if below is not None and below in call.children:  # came out of a child inside an object
                node = call.graph.call_function(operator.getitem, (call.children[below], "?"))
            else:  # came in inside an object, or from code that no torch function sees
                with call.graph.inserting_before(next(iter(call.graph.nodes), None)):
                    node = call.graph.placeholder(f"arg{len(call.nodes)}")
                if call.parent is not None:
                    outer = record_of(node).outer = self._node(call.parent, tensor)
                    call.hidden.append(outer)
        record_of(node).order = self.order
        self._note(call, tensor, node, made=False)
        return node

    def _argument(self, call: Call, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._node(call, value)
        if isinstance(value, list | tuple):
            return tuple(self._argument(call, item) for item in value)
        if isinstance(value, dict):
            return {str(key): self._argument(call, item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(*(self._argument(call, part) for part in (value.start, value.stop, value.step)))
        return value if isinstance(value, PLAIN) else f"<{type(value).__name__}>"


def describe(func: Any, args: tuple[Any, ...]) -> tuple[str, Any]:
    """The fx node kind and target for what a ``TorchFunctionMode`` sees."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return "call_function", getattr
    if name == "__getitem__":
        return "call_function", operator.getitem
    if name == "__setitem__":
        return "call_function", operator.setitem
    if type(func).__name__ in ("method_descriptor", "wrapper_descriptor"):
        return "call_method", name
    return "call_function", func


def version(tensor: torch.Tensor) -> int | None:
    """How often the tensor was written; None for one made in inference mode, which does not count."""
    return None if tensor.is_inference() else tensor._version


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


def _key(key: Any) -> Any:
    """The plain index behind a pytree key."""
    for name in ("idx", "key", "name"):
        if hasattr(key, name):
            return getattr(key, name)
    return str(key)
