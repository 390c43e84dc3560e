"""The weightless copy: the same model without data and hooks, and the original as it was."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import pytest
import timm
import torch
from torch import fx, nn

from se_inject.errors import TraceError
from se_inject.object_graph import HOOKS
from se_inject.trace.skeleton import HOOKED, share, skeleton, tensors, to_meta
from tests.nets import NETS, Basic, Functional, conv


@pytest.mark.parametrize("name", NETS)
def test_a_skeleton_is_the_same_model_on_meta(name: str) -> None:
    net = NETS[name]()
    copy = skeleton(net)
    assert type(copy) is type(net) and copy is not net
    assert [path for path, _ in copy.named_modules()] == [path for path, _ in net.named_modules()]
    for (path, old), (other, new) in zip(net.state_dict().items(), copy.state_dict().items(), strict=True):
        assert path == other
        assert (new.shape, new.dtype, new.stride(), new.device.type) == (old.shape, old.dtype, old.stride(), "meta")
    assert [p.requires_grad for p in copy.parameters()] == [p.requires_grad for p in net.parameters()]
    assert not any(t.is_meta for t in tensors(net))


def test_a_skeleton_costs_no_memory_for_weights() -> None:
    with torch.device("meta"):
        net = nn.Linear(1 << 20, 1 << 14)  # 64 GiB
    assert skeleton(net).weight.is_meta


def test_kinds_of_tensors_are_kept() -> None:
    net = Basic()
    net.conv1.weight.requires_grad_(False)
    net.register_buffer("table", torch.zeros(4, 2).t(), persistent=False)
    net.plain = torch.zeros(3, dtype=torch.int64)
    net.index = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)
    copy = skeleton(net)
    assert isinstance(copy.conv1.weight, nn.Parameter) and not copy.conv1.weight.requires_grad
    assert copy.table.stride() == (1, 2) and "table" not in copy.state_dict()
    assert copy.plain.is_meta and copy.plain.dtype == torch.int64 and not isinstance(copy.plain, nn.Parameter)
    assert isinstance(copy.index, nn.Parameter)


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_tensors(layout: torch.layout) -> None:
    net = Basic()
    net.register_buffer("sparse", torch.eye(4).to_sparse(layout=layout))
    copy = skeleton(net)
    assert copy.sparse.is_meta and copy.sparse.shape == (4, 4) and copy.sparse.layout == layout


@pytest.mark.filterwarnings("ignore:.*quantize.*")
def test_a_quantized_tensor_has_no_weightless_form() -> None:
    net = Basic()
    net.register_buffer("table", torch.quantize_per_tensor(torch.eye(4), 0.1, 0, torch.qint8))
    with pytest.raises(TraceError, match=r"holds a tensor of torch.qint8 .* Give the float model\."):
        skeleton(net)


def test_what_is_tied_stays_tied() -> None:
    net = nn.Sequential(conv(8, 8), conv(8, 8), nn.ReLU())
    net[1].weight = net[0].weight
    net.append(net[2])
    net.alias = net[0].weight
    copy = skeleton(net)
    assert copy[0].weight is copy[1].weight is copy.alias
    assert copy[3] is copy[2] and copy[2] is not net[2]


def test_hooks_are_left_behind() -> None:
    net = Basic()
    called: list[str] = []
    net.register_forward_pre_hook(lambda *_: called.append("pre"))
    net.conv1.register_forward_hook(lambda *_: called.append("hook"), always_call=True)
    net.bn1.register_full_backward_hook(lambda *_: called.append("backward"))
    net.register_state_dict_post_hook(lambda *_: called.append("state dict"))
    net.register_load_state_dict_post_hook(lambda *_: called.append("load"))
    before = {name: dict(vars(net)[name]) for name in HOOKS}
    copy = skeleton(net)
    copy.load_state_dict(copy.state_dict())
    copy(torch.zeros(2, 8, 4, 4, device="meta"))
    assert called == []
    assert all(not vars(m)[name] for m in copy.modules() for name in HOOKS)
    assert {name: dict(vars(net)[name]) for name in HOOKS} == before
    handle = copy.conv1.register_forward_hook(lambda *_: None)
    assert not copy.conv2._forward_hooks and len(net.conv1._forward_hooks) == 1
    handle.remove()


def test_hooks_that_the_model_sets_by_itself_are_set_anew() -> None:
    """As transformers does at the first forward, and remembers it in an attribute."""

    seen: list[torch.Tensor] = []

    class Collecting(Basic):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not getattr(self, HOOKED, False):
                self.bn1.register_forward_hook(lambda module, args, output: seen.append(output))
                setattr(self, HOOKED, True)
            super().forward(x)
            return seen.pop()

    net = Collecting().eval()
    x = torch.zeros(2, 8, 4, 4)
    assert net(x).shape == (2, 8, 4, 4)
    assert skeleton(net)(x.to("meta")).shape == (2, 8, 4, 4)
    assert len(net.bn1._forward_hooks) == 1 and getattr(net, HOOKED)
    hooked = skeleton(net, share, hooks=True)  # with the hooks goes the note that they are there
    assert getattr(hooked, HOOKED) and len(hooked.bn1._forward_hooks) == 1


def test_every_kind_of_hook_is_known() -> None:
    held = {name for name in vars(nn.Module()) if "hooks" in name and name != "_is_full_backward_hook"}
    assert held == set(HOOKS)


def test_mode_attributes_and_classes_are_kept() -> None:
    net = Basic().eval()
    net.bn1.train()
    net.note = {"a": [1, 2]}
    copy = skeleton(net)
    assert [m.training for m in copy.modules()] == [m.training for m in net.modules()]
    assert copy.note == net.note and copy.note is not net.note


def test_a_graph_module() -> None:
    net = fx.symbolic_trace(Basic().eval())
    net.register_forward_pre_hook(lambda *_: pytest.fail("the user's hook ran"))
    copy = skeleton(net)
    assert isinstance(copy, fx.GraphModule) and all(t.is_meta for t in tensors(copy))
    assert copy(torch.zeros(2, 8, 4, 4, device="meta")).shape == (2, 8, 4, 4)


def test_a_parametrized_module() -> None:
    net = nn.utils.parametrizations.weight_norm(conv(8, 8))
    copy = skeleton(net)
    assert list(copy.state_dict()) == list(net.state_dict())
    assert copy.weight.is_meta and not net.weight.is_meta


def test_sharing_keeps_parameters_and_clones_the_rest() -> None:
    net = Functional()
    net.table = torch.zeros(3)
    copy = skeleton(net, keep=share)
    assert all(a is b for a, b in zip(copy.parameters(), net.parameters(), strict=True))
    for a, b in ((copy.mean, net.mean), (copy.var, net.var), (copy.table, net.table)):
        assert a is not b and torch.equal(a, b) and a.data_ptr() != b.data_ptr()
    copy.mean += 1
    assert not net.mean.any()


def test_tensors_are_all_that_a_model_holds() -> None:
    net = Functional()
    net.plain = torch.zeros(1)
    assert {id(t) for t in tensors(net)} == {id(t) for t in (*net.parameters(), *net.buffers(), net.plain)}


def test_to_meta() -> None:
    for tensor in (
        torch.zeros(3, 4)[:, ::2],
        torch.zeros(()),
        torch.zeros(0, 2),
        torch.zeros(1).expand(1 << 20, 1 << 12),
    ):
        meta = to_meta(tensor)
        assert (meta.shape, meta.stride(), meta.dtype, meta.is_meta) == (
            tensor.shape,
            tensor.stride(),
            tensor.dtype,
            True,
        )


@pytest.mark.parametrize(
    "held",
    [threading.Lock(), (i for i in range(3)), weakref.WeakSet],
    ids=["lock", "generator", "a class is fine"],
)
def test_what_cannot_be_copied_is_said(held: Any) -> None:
    net = Basic()
    net.held = held
    if isinstance(held, type):
        assert skeleton(net).held is held
        return
    with pytest.raises(TraceError) as error:
        skeleton(net)
    text = str(error.value)
    assert text.startswith("cannot copy Basic: TypeError: cannot pickle")
    assert "\n" not in text and text.endswith("remove it first.")


def test_a_real_model() -> None:
    net = timm.create_model("mobilenetv3_small_050")
    copy = skeleton(net)
    assert copy(torch.zeros(2, 3, 64, 64, device="meta")).shape == (2, 1000)
    assert copy.default_cfg == net.default_cfg
