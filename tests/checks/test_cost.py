"""Costs: by hand on tiny nets, against published numbers on ResNets, and that looking changes nothing."""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from se_inject.api import cost
from se_inject.checks.cost import ELEMENTWISE, MOVES, REDUCTIONS, Measured, batch_size, measure
from se_inject.errors import PlanMismatchError, TraceError
from se_inject.inputs import Inputs, resolve
from se_inject.types import BlockSpec, Carrier, Cost, Decision, Plan, Site


class Fn(nn.Module):
    """A function as a model."""

    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, *args, **kwargs):
        return self.fn(*args, **kwargs)


class SE(nn.Module):
    def __init__(self, channels, r=16):
        super().__init__()
        self.fc1, self.act = nn.Conv2d(channels, channels // r, 1), nn.ReLU()
        self.fc2, self.gate = nn.Conv2d(channels // r, channels, 1), nn.Sigmoid()

    def forward(self, x):
        return x * self.gate(self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))))


class Detector(nn.Module):
    """Two boxes for each image; NMS has no meta kernel."""

    def __init__(self):
        super().__init__()
        self.conv, self.se = nn.Conv2d(3, 4, 1), SE(4, 2)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images):
        self.seen.add_(1)
        boxes = [self.se(self.conv(i[None])).flatten()[:8].view(2, 4) for i in images]
        return [b[torchvision.ops.nms(b, b[:, 0], 0.5)] for b in boxes]


def site_costs(model, example_inputs, plan):
    return measure(model, example_inputs, [d.key for d in plan.insertions]).sites(plan)


def make_plan(*keys):
    def decision(key):
        path, _, name = key.rpartition(".")
        carrier = Carrier("slot", path, name)
        site = Site(f"{path}:standard", "standard", path, "", 1, 1, (), 1, 0, 1, "", 1, carrier=carrier)
        return Decision(site, "insert", "asked", BlockSpec().name)

    return Plan("", {}, None, "", {}, 0, tuple(map(decision, keys)))


# model, size without the batch, parameters, MACs, element-wise, bytes per sample
BY_HAND = {
    "conv": (nn.Conv2d(3, 4, 3, padding=1), (3, 8, 8), 112, 64 * 4 * 27, 0, 4 * 256),
    "conv of stride 2": (nn.Conv2d(3, 4, 3, 2, 1, bias=False), (3, 8, 8), 108, 16 * 4 * 27, 0, 4 * 64),
    "grouped conv": (nn.Conv2d(4, 8, 3, groups=2, bias=False), (4, 5, 5), 144, 9 * 8 * 2 * 9, 0, 4 * 72),
    "depthwise conv": (nn.Conv2d(4, 4, 3, groups=4, bias=False), (4, 5, 5), 36, 9 * 4 * 9, 0, 4 * 36),
    "transposed conv": (nn.ConvTranspose2d(3, 4, 2, 2, bias=False), (3, 5, 5), 48, 25 * 48, 0, 4 * 400),
    "conv1d of ECA": (nn.Conv1d(1, 1, 3, padding=1, bias=False), (1, 64), 3, 192, 0, 4 * 64),
    "linear": (nn.Linear(5, 7), (5,), 42, 35, 0, 4 * 7),
    "linear on a sequence": (nn.Linear(5, 7), (3, 5), 42, 105, 0, 4 * 21),
    "half precision": (nn.Linear(5, 7).half(), (5,), 42, 35, 0, 2 * 7),
    "batch norm": (nn.BatchNorm2d(4), (4, 8, 8), 8, 0, 512, 1024),
    "layer norm": (nn.LayerNorm(8), (4, 8), 16, 0, 5 * 32, 128),
    "layer norm, not affine": (nn.LayerNorm(8, elementwise_affine=False), (4, 8), 0, 0, 4 * 32, 128),
    "max pool": (nn.MaxPool2d(3, 2, 1), (4, 8, 8), 0, 0, 64 * 9, 256),
    "average pool": (nn.AvgPool2d(2), (4, 8, 8), 0, 0, 64 * 4, 256),
    "global average pool": (nn.AdaptiveAvgPool2d(1), (4, 8, 8), 0, 0, 256, 16),
    "adaptive average pool": (nn.AdaptiveAvgPool2d(2), (4, 8, 8), 0, 0, 256, 64),
    "softmax": (nn.Softmax(1), (8,), 0, 0, 24, 32),
    "bilinear": (nn.UpsamplingBilinear2d(scale_factor=2), (1, 4, 4), 0, 0, 64 * 4, 256),
    "nearest": (nn.Upsample(scale_factor=2), (1, 4, 4), 0, 0, 0, 256),
    "relu": (nn.ReLU(), (4, 8), 0, 0, 32, 128),
    "in place: no new memory": (nn.ReLU(inplace=True), (4, 8), 0, 0, 32, 0),
    "view: no new memory": (nn.Flatten(), (4, 8), 0, 0, 0, 0),
    "identity: no new memory": (nn.Identity(), (4, 8), 0, 0, 0, 0),
    "in-place ops without tag": (Fn(lambda x: F.mish(F.hardswish(x + 0, True), True)), (8,), 0, 0, 24, 32),
    "moves": (Fn(lambda x: torch.cat([F.pad(x, (1, 1)), x.new_zeros(2, 2)], 1).clone().flip(1)), (8,), 0, 0, 0, 48),
    "sums": (Fn(lambda x: x.sum(1) + x.amax(1)), (8,), 0, 0, 17, 4),
    "SE": (SE(64), (64, 56, 56), 580, 512, 200_704 + 200_704 + 4 + 64, 4 * (4 + 4 + 64 + 64)),
    "conv, norm, relu": (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()), (3, 2, 2), 24, 48, 48, 192),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name):
    model, size, *expected = BY_HAND[name]
    assert cost(model, size) == Cost(*expected, uncounted={})


# timm model -> parameters, MACs at 224
PUBLISHED = {
    "resnet50": (25_557_032, 4_089_184_256),
    "seresnet50": (28_088_024, 4_091_699_200),
    "resnet18": (11_689_512, 1_814_073_344),
    "seresnet18": (11_779_624, 1_814_161_408),
}


@pytest.fixture(scope="module")
def zoo():
    return {name: timm.create_model(name).eval() for name in PUBLISHED}


class Computed(TorchDispatchMode):
    """The ops whose results are on no meta device."""

    def __init__(self):
        super().__init__()
        self.ops = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, torch.Tensor) and not leaf.is_meta for leaf in tree_leaves(out)):
            self.ops.add(str(func))
        return out


@pytest.mark.parametrize("name", PUBLISHED)
def test_published(zoo, name):
    with Computed() as computed:
        got = cost(zoo[name])
    assert computed.ops == {"aten.randn.generator"}  # the input
    assert (got.parameters, got.macs, got.uncounted) == (*PUBLISHED[name], {})
    assert got.flops == 2 * got.macs


# Fused attention, batch norm on weights, windows, attention in parts: MACs as torch's own counter sees them.
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "dm_nfnet_f0", "swinv2_cr_tiny_224", "convit_tiny"])
def test_macs_equal_torchs_counter(name):
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    inputs = resolve(model).map(lambda t: t.to("meta"))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs.args)
    got = measure(model)
    assert got.cost.macs * 2 * 2 == counter.get_total_flops()
    assert got.cost.uncounted == {}


def test_recurrent_layer():
    """Four gates, each with a matrix for the input and one for the state, and two biases; 4 steps."""
    got = cost(nn.LSTM(3, 5, batch_first=True), (4, 3))
    assert (got.parameters, got.macs, got.uncounted) == (4 * 5 * (3 + 5 + 2), 4 * 4 * 5 * (3 + 5), {})


def test_composite_ops_are_decomposed_under_inference_mode():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    assert cost(Fn(torch.inference_mode()(net.forward)), (3, 2, 2)).macs == cost(net, (3, 2, 2)).macs == 80


def test_real_and_meta_runs_count_the_same(zoo):
    """NMS of one box that is thrown away forces the real run; attention would be fused there."""

    class Forced(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            torchvision.ops.nms(x.new_zeros(1, 4), x.new_ones(1), 0.5)
            y = self.model(x).flatten(1)[:, None]
            return F.scaled_dot_product_attention(y, y, y)

    class Free(Forced):
        def forward(self, x):
            y = self.model(x).flatten(1)[:, None]
            return F.scaled_dot_product_attention(y, y, y)

    real, free = (measure(kind(zoo["seresnet18"]), (3, 64, 64)) for kind in (Forced, Free))
    assert real.cost.uncounted == {"torchvision.nms": 1} and "real run" in real.note
    assert free.note == "" and {**vars(real.cost), "uncounted": {}} == vars(free.cost)


def test_sites_add_up(zoo):
    """seresnet18 has resnet18's Identity slots filled: the sites are the whole difference."""
    keys = [f"layer{stage}.{block}.se" for stage in (1, 2, 3, 4) for block in (0, 1)]
    sites = site_costs(zoo["seresnet18"], None, make_plan(*keys))
    before, after = cost(zoo["resnet18"]), cost(zoo["seresnet18"])
    assert [s.id for s in sites] == [f"layer{s}.{b}:standard" for s in (1, 2, 3, 4) for b in (0, 1)]
    for column in ("parameters", "macs", "elementwise", "activation_bytes"):
        assert sum(getattr(s, column) for s in sites) == getattr(after, column) - getattr(before, column) > 0
    # 64 channels, 56x56, 8 inner: FACTS of one block
    assert (sites[0].parameters, sites[0].macs, sites[0].elementwise) == (1096, 1024, 2 * 200_704 + 8 + 64)


def test_skips_cost_nothing(zoo):
    skip = Decision(make_plan("layer1.0.se").decisions[0].site, "skip", "excluded")
    assert site_costs(zoo["resnet18"], None, Plan("", {}, None, "", {}, 0, (skip,))) == ()


def test_missing_block_is_a_mismatch():
    with pytest.raises(PlanMismatchError, match=r"'conv\.se'.*Sequential.*rewritten"):
        site_costs(nn.Sequential(nn.Identity()), (3, 4, 4), make_plan("conv.se"))


class Twice(nn.Module):
    """One block at two paths, called three times; and a block inside a watched block."""

    def __init__(self):
        super().__init__()
        self.a = SE(16)
        self.b, self.idle = self.a, nn.Linear(3, 3)

    def forward(self, x):
        return self.b(self.a(self.a(x)))


def test_shared_module_counts_every_call_and_its_parameters_once():
    got = measure(Twice(), (16, 4, 4), watch=["a", "b", "a.fc1", "idle"])
    one = cost(SE(16), (16, 4, 4))
    assert got.cost.parameters == one.parameters + 12
    assert got.by_module["a"] == got.by_module["b"]
    assert got.by_module["a"].parameters == one.parameters
    assert got.by_module["a"].macs == got.cost.macs == 3 * one.macs
    assert got.by_module["a"].elementwise == got.cost.elementwise == 3 * one.elementwise
    assert got.by_module["a.fc1"] == Cost(17, 3 * 16, 0, 3 * 4)
    assert got.by_module["idle"] == Cost(12, 0, 0, 0)  # never called


def test_tied_parameters_count_once():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    assert cost(net, (4,)) == Cost(24, 32, 0, 32)


def test_watched_leaf_and_caught_failure():
    """A watched module without children counts its own output, and one that raises is left again."""

    class Guarded(nn.Module):
        def __init__(self):
            super().__init__()
            self.bad, self.good = Fn(lambda x: x + x.new_zeros(x.numel() + 1)), nn.ReLU()

        def forward(self, x):
            try:
                return self.bad(x)
            except RuntimeError:
                return self.good(x)

    got = measure(Guarded(), (8,), watch=["bad", "good"])
    assert got.by_module == {"bad": Cost(0, 0, 0, 0), "good": Cost(0, 0, 8, 32)}


# model, uncounted
UNCOUNTED = {
    "topk": (lambda x: x.topk(2)[0].topk(1)[0], {"aten.topk": 2}),
    "sort": (lambda x: x.sort(1)[0] + 1, {"aten.sort": 1}),
    "matrix-vector product": (lambda x: x @ x.new_ones(8), {"aten.mv": 1}),
    "none": (lambda x: x + 1, {}),
}


@pytest.mark.parametrize("name", UNCOUNTED)
def test_uncounted_ops_are_listed(name):
    fn, expected = UNCOUNTED[name]
    assert cost(Fn(fn), (8,)).uncounted == expected


def test_tables_name_real_ops_once():
    for name in (*ELEMENTWISE, *MOVES, *REDUCTIONS):
        known = hasattr(torch.ops.aten, name) or hasattr(torch.ops.aten, name + "_")
        assert known or name == "linalg__powsum", name  # newer than torch 2.9
    assert not MOVES & set(ELEMENTWISE) and not REDUCTIONS & (MOVES | set(ELEMENTWISE))


def test_reductions_are_those_of_torch():
    if not hasattr(torch.Tag, "reduction"):
        pytest.skip("this torch does not say which ops reduce")
    names = {name.removeprefix("aten::").partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    packets = {name: getattr(torch.ops.aten, name) for name in names if hasattr(torch.ops.aten, name)}
    overloads = [(name, getattr(packet, o)) for name, packet in packets.items() for o in packet.overloads()]
    assert {name for name, op in overloads if torch.Tag.reduction in op.tags} == REDUCTIONS


def test_detection_falls_back_to_a_real_run():
    model = Detector()
    images = [torch.rand(3, 8, 8), torch.rand(3, 8, 8)]
    got = measure(model, (images,), watch=["se"])
    assert "real run" in got.note and got.cost.uncounted == {"torchvision.nms": 2}
    assert got.cost.macs == 64 * 3 * 4 + got.by_module["se"].macs  # per image: 2 images, NMS counts none
    assert got.by_module["se"] == Cost(22, 16, 2 * 256 + 2 + 4, 4 * (2 + 2 + 4 + 4))
    assert model.seen == 0 and model.training
    assert cost(model, (images,)) == got.cost


def test_failure_on_both_ways_is_one_clear_error():
    with pytest.raises(TraceError, match=r"Sequential: its forward failed on inputs .*\[2, 5\].*cannot be multiplied"):
        cost(nn.Sequential(nn.Linear(4, 4)), (5,))


def test_no_size_to_take_is_an_error():
    with pytest.raises(TraceError, match="no input size"):
        cost(nn.Linear(4, 4))


def test_per_sample_whatever_the_batch():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    costs = [measure(net, torch.rand(n, 3, 6, 6)) for n in (1, 3, 7)]
    assert costs[0].note == "" and costs[1] == costs[0] == costs[2]


def test_work_that_the_batch_does_not_divide_is_said():
    standardised = nn.Linear(3, 5)  # 15 multiplications of the weight, whatever the batch
    net = Fn(lambda x: F.linear(x, standardised.weight.to(x.device) * 2))
    assert measure(net, torch.rand(2, 3)) == Measured(
        Cost(0, 15, 7, 20), {}, "not divisible by the batch of 2, rounded down: elementwise"
    )
    assert measure(net, torch.rand(5, 3)) == Measured(Cost(0, 15, 3, 20), {}, "")


# arguments -> batch
BATCHES = [
    (Inputs((torch.rand(4, 3, 8, 8),), {}), 4),
    (Inputs((7, torch.rand(4, 3)), {}), 4),
    (Inputs((), {"flag": True, "x": {"deep": torch.rand(5, 2)}}), 5),
    (Inputs(([torch.rand(3, 8, 8), torch.rand(3, 9, 8)],), {}), 2),  # images of a detector
    (Inputs(([torch.rand(4, 8, 8, 8), torch.rand(4, 8, 4, 4)],), {}), 4),  # feature maps
    (Inputs((torch.tensor(1.0),), {}), 1),
    (Inputs((torch.rand(0, 3),), {}), 1),
    (Inputs((), {}), 1),
]


@pytest.mark.parametrize("inputs, batch", BATCHES)
def test_batch(inputs, batch):
    assert batch_size(inputs) == batch


@pytest.mark.parametrize("layers", [(nn.Conv2d(8, 4, 3), nn.ReLU()), (nn.ReLU(), nn.Conv2d(8, 4, 3))])
def test_a_single_image_to_which_the_forward_adds_the_batch(layers):
    net = nn.Sequential(*layers)
    batched = nn.Sequential(nn.Unflatten(0, (1, 8)), net)
    single, image = measure(batched, torch.rand(8, 6, 6)), torch.rand(1, 8, 6, 6)
    assert single.cost.macs == measure(net, image).cost.macs and single.batch == 1
    assert measure(net, torch.rand(8, 6, 6)).cost.macs == single.cost.macs  # torch adds it
    assert measure(net, torch.rand(8, 8, 6, 6)).batch == 8


@pytest.mark.parametrize("kind", ["meta", "real"])
def test_model_and_inputs_stay_as_they_are(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.drop = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            if kind == "real":
                torchvision.ops.nms(x.new_zeros(1, 4), x.new_ones(1), 0.5)
            return self.drop(self.bn(self.conv(x.mul_(2)))) + torch.rand(())

    model, x = Net(), torch.rand(2, 3, 8, 8)
    model.bn.eval()
    ran = []
    model.conv.register_forward_hook(lambda *_: ran.append(1))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    attributes = {name: set(vars(m)) for name, m in model.named_modules()}
    given, rng = x.clone(), torch.get_rng_state()
    got = measure(model, x, watch=["conv"])
    assert ("real run" in got.note) == (kind == "real")
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert {name: set(vars(m)) for name, m in model.named_modules()} == attributes
    assert not ran and all(p.grad is None for p in model.parameters())
    assert torch.equal(x, given) and torch.equal(torch.get_rng_state(), rng)
    assert torch.is_grad_enabled()
