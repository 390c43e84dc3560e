"""Every block, in every start and layout: what it computes, how it starts, how it learns, and how it travels."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import cbam, eca, global_context, squeeze_excite
from torch import nn

import se_inject
from se_inject.blocks import BLOCKS, Block, find_block
from se_inject.blocks.custom import REGISTERED
from se_inject.errors import PlanMismatchError, RulesError
from se_inject.output.folder import read_plan
from se_inject.types import INITS, BlockSpec, Site, dump
from tests.helpers import refused, run, site_at

C = 32
SHAPES = {
    "NCL": (3, C, 21), "NCHW": (3, C, 9, 6), "NCDHW": (3, C, 8, 6, 5), "NHWC": (3, 9, 6, C), "NDHWC": (3, 8, 6, 5, C),
    "NLC": (3, 21, C),
}  # fmt: skip
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Options that change what a block computes, beside the defaults.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "se": [
        {"gate": "hardsigmoid", "squeeze": "max"},
        {"gate": "tanh1", "squeeze": "mean+max", "bias": False},
        {"squeeze_fp32": True, "norm": True, "act": "silu"},
    ],
    "se_plain": [{"rd_channels": 5}],
    "ese": [{"gate": "sigmoid", "squeeze": "mean+max", "squeeze_fp32": True}],
    "eca": [{"gate": "tanh1", "squeeze": "max"}, {"kernel_size": 7, "squeeze_fp32": True}],
    "cbam": [{"spatial_kernel_size": 3, "mlp_bias": True, "gate": "tanh1"}],
    "gc": [{"fusion": "add"}, {"fusion": "both", "act": "gelu"}, {"attn": False, "gate": "hardsigmoid"}],
    "stn": [{"depth": 2, "width": 4, "hidden": 16}],
}
# Parameters whose gradient is zero by the block's own arithmetic: softmax does not see an added constant, and a
# batch norm in train mode none either.
UNSEEN = {("gc", "conv_attn.bias"), ("se", "fc1.bias")}
# How far a half-precision result may be from fp32's, relative to the output's size. fp16 has 11 bits and bf16 8; some
# roundings add up. The transformer's convolutions round the map it looks by: at an edge of random noise that shows.
HALF = {torch.float16: 0.005, torch.bfloat16: 0.04}
HALF_STN = {torch.float16: 0.02, torch.bfloat16: 0.15}


def site(layout: str = "NCHW", **changes: Any) -> Site:
    plain = {"channels": C, "axis": layout.index("C"), "shape": SHAPES[layout], "block_channels": 16, "carrier": None}
    return site_at("block", **{**plain, **changes})


def build(name: str, layout: str = "NCHW", init: str = "identity", **options: Any) -> nn.Module:
    block = BLOCKS[name]
    return block.module(**block.resolve(site(layout), init, options))


def starts(name: str, options: dict[str, Any]) -> list[str]:
    """The starts that a block has with these options."""
    halves = options.get("gate") != "tanh1" and options.get("fusion") != "add"
    return [init for init in BLOCKS[name].inits if init != "absorb" or halves]


CASES = [(name, layout, o) for name, b in BLOCKS.items() for layout in b.layouts for o in ({}, *VARIANTS[name])]
IDS = [f"{n}-{layout}-{'-'.join(map(str, o.values())) or 'default'}" for n, layout, o in CASES]
family = pytest.mark.parametrize(("name", "layout", "options"), CASES, ids=IDS)


# -- the table --------------------------------------------------------------------------------------------------------
def test_every_block_names_its_layouts_starts_and_paper() -> None:
    assert list(BLOCKS) == ["se", "se_plain", "ese", "eca", "cbam", "gc", "stn"]
    for block in BLOCKS.values():
        assert set(block.layouts) <= set(SHAPES) and set(block.inits) <= set(INITS)
        assert {"identity", "paper"} <= set(block.inits)
        assert "arXiv" in block.paper
    assert [name for name, block in BLOCKS.items() if "absorb" not in block.inits] == ["cbam", "stn"]


# -- starts -----------------------------------------------------------------------------------------------------------
@family
def test_starts(name: str, layout: str, options: dict[str, Any]) -> None:
    """Identity is exact, absorb exactly half, in each dtype, mode and memory format; format and dtype are kept."""
    for init in starts(name, options):
        for dtype in DTYPES:
            module = build(name, layout, init, **options).to(dtype)
            for training in (True, False):
                for x in formats(layout, dtype):
                    y = module.train(training)(x)
                    assert y.dtype == x.dtype and y.shape == x.shape and y.stride() == x.stride()
                    if init == "identity":
                        assert torch.equal(y, x)
                    elif init == "absorb":
                        assert torch.equal(module(2 * x), x)
                    elif (
                        name != "stn" and options.get("fusion") != "add"
                    ):  # which start near the identity by themselves
                        assert not torch.equal(y, x)


def formats(layout: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """The layout's test map, contiguous and channels_last."""
    x = torch.randn(SHAPES[layout], generator=torch.Generator().manual_seed(1)).to(dtype)
    kinds = {"NCHW": torch.channels_last, "NCDHW": torch.channels_last_3d}
    return [x, x.contiguous(memory_format=kinds[layout])] if layout in kinds else [x]


@family
def test_learns(name: str, layout: str, options: dict[str, Any]) -> None:
    """Within two steps of SGD every parameter has had a gradient."""
    for init in starts(name, options):
        torch.manual_seed(0)
        module = build(name, layout, init, **options).train()
        x, weight = torch.randn(SHAPES[layout]), torch.randn(SHAPES[layout])
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        reached = set()
        for _ in range(2):
            optimizer.zero_grad()
            (module(x) * weight).sum().backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
            reached |= {key for key, p in module.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-6}
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)  # a first step that does not throw it out of the world
            optimizer.step()
        unseen = {k for n, k in UNSEEN if n == name and (n != "se" or options.get("norm"))}
        assert {key for key, _ in module.named_parameters()} - reached <= unseen


@family
def test_half_precision(name: str, layout: str, options: dict[str, Any]) -> None:
    module = build(name, layout, "paper", **options).eval()
    x = torch.randn(SHAPES[layout])
    for dtype, bound in (HALF_STN if name == "stn" else HALF).items():
        module.float().load_state_dict({k: v.to(dtype).float() for k, v in module.state_dict().items()})
        want = module(x.to(dtype).float())
        got = module.to(dtype)(x.to(dtype)).float()
        assert (got - want).abs().max() <= bound * want.abs().max()


@family
def test_autocast(name: str, layout: str, options: dict[str, Any]) -> None:
    """bf16 stays bf16, fp32 stays fp32, and the start is as exact as without."""
    x = torch.randn(SHAPES[layout])
    for init in starts(name, options):
        module = build(name, layout, init, **options)
        with torch.autocast("cpu", torch.bfloat16):
            for given in (x, x.bfloat16()):
                y = module(given)
                assert y.dtype == given.dtype
                assert init != "identity" or torch.equal(y, given)


@pytest.mark.parametrize("name", ["se", "ese", "eca"])
def test_squeeze_in_fp32_is_not_rounded_under_autocast(name: str) -> None:
    module, plain = build(name, init="paper", squeeze_fp32=True), build(name, init="paper")
    plain.load_state_dict(module.state_dict())
    x = torch.ones(SHAPES["NCHW"])
    want = plain(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x), want)
        assert not torch.equal(plain(x), want)
    assert module.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


# -- arithmetic -------------------------------------------------------------------------------------------------------
def timm_pairs() -> dict[str, tuple[Any, nn.Module]]:
    se, ese, gc = squeeze_excite.SEModule, squeeze_excite.EffectiveSEModule, global_context.GlobalContext
    return {
        "se": (se(C), build("se", init="paper")),
        "se mean+max": (se(C, add_maxpool=True), build("se", init="paper", squeeze="mean+max")),
        "se hardsigmoid silu": (
            se(C, gate_layer="hard_sigmoid", act_layer=nn.SiLU, bias=False),
            build("se", init="paper", gate="hardsigmoid", act="silu", bias=False),
        ),
        "se norm": (se(C, norm_layer=nn.BatchNorm2d), build("se", init="paper", norm=True)),
        "ese": (ese(C), build("ese", init="paper")),
        "ese mean+max": (ese(C, add_maxpool=True), build("ese", init="paper", squeeze="mean+max")),
        "eca": (eca.EcaModule(C), build("eca", init="paper")),
        "eca 7": (eca.EcaModule(kernel_size=7), build("eca", init="paper", kernel_size=7)),
        "cbam": (cbam.CbamModule(C), build("cbam", init="paper")),
        "cbam 3": (
            cbam.CbamModule(C, rd_channels=6, spatial_kernel_size=3, mlp_bias=True),
            build("cbam", init="paper", rd_channels=6, spatial_kernel_size=3, mlp_bias=True),
        ),
        "gc": (gc(C), build("gc", init="paper")),
        "gc add": (gc(C, fuse_add=True, fuse_scale=False), build("gc", init="paper", fusion="add")),
        "gc both": (gc(C, fuse_add=True), build("gc", init="paper", fusion="both")),
        "gc mean": (gc(C, use_attn=False), build("gc", init="paper", attn=False)),
    }


@pytest.mark.parametrize("pair", timm_pairs())
def test_equals_timm(pair: str) -> None:
    """Keys, shapes and outputs, with timm's own random weights in both."""
    theirs, ours = timm_pairs()[pair]
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # what it starts at zero too
    ours.load_state_dict(theirs.state_dict())
    for training in (False, True):
        for dtype in DTYPES:
            for x in formats("NCHW", dtype):
                assert torch.equal(ours.to(dtype).train(training)(x), theirs.to(dtype).train(training)(x))
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("channels", [16, 32, 64, 128, 256, 512, 1024, 2048])
def test_default_sizes_are_timms(channels: int) -> None:
    def shapes(module: nn.Module) -> dict[str, torch.Size]:
        return {key: tensor.shape for key, tensor in module.state_dict().items()}

    theirs = {"se": squeeze_excite.SEModule, "eca": eca.EcaModule, "cbam": cbam.CbamModule}
    if channels >= 32:  # below, timm's layer norm is over one or two channels
        theirs["gc"] = global_context.GlobalContext
    with torch.device("meta"):
        for name, module in theirs.items():
            kwargs = BLOCKS[name].resolve(site(channels=channels), "paper", {})
            assert shapes(BLOCKS[name].module(**kwargs)) == shapes(module(channels))


def test_channels_last_layout_is_timms_with_linear_layers() -> None:
    theirs, ours = squeeze_excite.SqueezeExciteCl(C), build("se", "NHWC", "paper")
    ours.load_state_dict({k: v[..., None, None] if "weight" in k else v for k, v in theirs.state_dict().items()})
    x = torch.randn(SHAPES["NHWC"])
    torch.testing.assert_close(ours(x), theirs(x))  # a matrix product and a convolution add in another order


@pytest.mark.parametrize(
    ("name", "layout"), [(n, lay) for n, b in BLOCKS.items() for lay in b.layouts if n != "stn" and lay != "NCHW"]
)
def test_layouts_agree(name: str, layout: str) -> None:
    """The same numbers lie in the map's axes: each layout gives what NCHW gives on the map turned and flattened."""
    torch.manual_seed(0)
    sizes = {"NCL": (2, C, 11), "NCDHW": (2, C, 1, 5, 4), "NHWC": (2, 5, 4, C), "NDHWC": (2, 1, 5, 4, C)}
    x = torch.randn(sizes.get(layout, (2, 11, C)))
    first = x.movedim(-1, 1) if layout.endswith("C") else x
    flat = first.reshape(2, C, -1, first.shape[-1])
    for options in ({}, *VARIANTS[name]):
        ours, plain = build(name, layout, "paper", **options).eval(), build(name, "NCHW", "paper", **options).eval()
        state = ours.state_dict()
        for key, tensor in plain.state_dict().items():
            if key == "spatial.conv.conv.weight" and layout == "NCL":
                tensor = tensor[..., tensor.shape[-2] // 2, :]  # the row that is not padding
            elif key == "spatial.conv.conv.weight" and layout in ("NCDHW", "NDHWC"):
                state[key].zero_()[:, :, state[key].shape[2] // 2] = tensor
                continue
            state[key].copy_(tensor.reshape(state[key].shape))
        want = plain(flat).reshape(first.shape)
        want = want.movedim(1, -1) if layout.endswith("C") else want
        torch.testing.assert_close(ours(x), want)


class Listing(nn.Module):
    """The block as tutorials print it."""

    def __init__(self, input_channels: int, internal_neurons: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(input_channels, internal_neurons, kernel_size=1, stride=1, bias=True)
        self.up = nn.Conv2d(internal_neurons, input_channels, kernel_size=1, stride=1, bias=True)
        self.input_channels = input_channels

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        x = F.avg_pool2d(inputs, kernel_size=inputs.size(3))
        x = torch.sigmoid(self.up(F.relu(self.down(x))))
        return inputs * x.view(-1, self.input_channels, 1, 1)


def test_plain_equals_the_listing_on_square_maps_and_is_right_on_others() -> None:
    theirs, ours = Listing(C, 4), build("se_plain", init="paper", rd_channels=4)
    ours.load_state_dict(theirs.state_dict())
    square, wide = torch.randn(2, C, 7, 7), torch.randn(2, C, 4, 9)
    torch.testing.assert_close(ours(square), theirs(square))  # a pool and a mean add in another order
    s = torch.sigmoid(theirs.up(F.relu(theirs.down(wide.mean((2, 3), keepdim=True)))))
    torch.testing.assert_close(ours(wide), wide * s)
    with pytest.raises(RuntimeError):  # the pool is larger than the map
        theirs(wide)


@pytest.mark.parametrize("layout", ["NCHW", "NCDHW"])
def test_transformer_samples_as_torch_does(layout: str) -> None:
    module: Any = build("stn", layout, "identity")
    x = torch.randn(SHAPES[layout])
    with torch.no_grad():
        module.blend.fill_(1.0)
        theta = module.localisation(x)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    torch.testing.assert_close(module.grid(theta, x), grid)
    torch.testing.assert_close(module(x), F.grid_sample(x, grid, align_corners=False), rtol=1e-4, atol=1e-4)
    away = (theta - torch.eye(module.dims, module.dims + 1)).abs()
    assert 0.01 < away.max() < 0.5  # a warp that one can see, and no other image


def test_transformer_starts_at_the_identity_map_as_the_paper_has_it() -> None:
    module: Any = build("stn", init="paper")
    x = torch.randn(SHAPES["NCHW"])
    assert torch.equal(module.localisation(x), torch.eye(2, 3).expand(3, 2, 3))
    torch.testing.assert_close(module(x), x, rtol=0, atol=1e-3)  # resampling rounds


@pytest.mark.parametrize(("side", "depth"), [(4, 1), (8, 1), (16, 2), (28, 2), (32, 3), (224, 5), (1024, 8)])
def test_transformer_net_has_the_size_of_its_input(side: int, depth: int) -> None:
    assert BLOCKS["stn"].resolve(site(shape=(1, 3, side, 2 * side)), "identity", {})["depth"] == depth


def test_parameters_by_formula() -> None:
    def count(name: str, layout: str = "NCHW", init: str = "identity", **options: Any) -> int:
        return sum(p.numel() for p in build(name, layout, init, **options).parameters())

    for layout, d in (("NCL", 1), ("NCHW", 2), ("NCDHW", 3), ("NHWC", 2)):
        assert count("se", layout, rd_channels=4) == 2 * C * 4 + 4 + C
        assert count("se", layout, rd_channels=4, bias=False) == 2 * C * 4
        assert count("se_plain", layout, rd_channels=3) == 2 * C * 3 + 3 + C
        assert count("se_plain", layout) == 2 * C * 2 + 2 + C
        assert count("ese", layout) == C * C + C
        assert count("eca", layout) == 3
        assert count("cbam", layout) == 2 * C * 2 + 2 * 7**d + 2
        mlp = 2 * C * 4 + 4 + C + 2 * 4
        assert count("gc", layout) == count("gc", layout, fusion="add") == C + 1 + mlp
        assert count("gc", layout, fusion="both") == C + 1 + 2 * mlp
        assert count("gc", layout, attn=False) == mlp
    for layout, d in (("NCHW", 2), ("NCDHW", 3)):
        net = C * 8 * 3**d + 8 + 8 * 4**d * 32 + 32 + 32 * d * (d + 1) + d * (d + 1)
        assert count("stn", layout) == net + 1 and count("stn", layout, "paper") == net
    assert count("eca", kernel_size=5) == 5


# -- how they travel --------------------------------------------------------------------------------------------------
class All(nn.Module):
    """Many blocks on one input: one export for all."""

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(modules)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [block(x) for block in self.blocks]


@pytest.mark.parametrize("layout", SHAPES)
def test_export_with_dynamic_batch_and_size(layout: str) -> None:
    cases = [(n, o, init) for n, lay, o in CASES if lay == layout for init in (["identity"] if o else starts(n, o))]
    model = All([build(n, layout, init, **o) for n, o, init in cases]).eval()
    dims = {i: torch.export.Dim(f"d{i}", min=2, max=64) for i, letter in enumerate(layout) if letter != "C"}
    program = torch.export.export(model, (torch.randn(SHAPES[layout]),), dynamic_shapes=({**dims},))
    other = torch.randn([n if i == layout.index("C") else n + 2 for i, n in enumerate(SHAPES[layout])])
    for got, want in zip(program.module()(other), model(other), strict=True):
        torch.testing.assert_close(got, want)


@family
def test_scripts(name: str, layout: str, options: dict[str, Any]) -> None:
    module = build(name, layout, "paper", **options).eval()
    x = torch.randn(SHAPES[layout])
    assert torch.equal(torch.jit.script(module)(x), module(x))


# -- options ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "init", "options", "message"),
    [
        ("se", "identity", {"gate": "sigmoide"}, "gate: 'sigmoide' is none of sigmoid, hardsigmoid, tanh1"),
        ("se", "identity", {"squeeze": ["mean"]}, "squeeze: .* is none of mean, max, mean"),
        ("se", "identity", {"squeeze_fp32": 1}, "squeeze_fp32: 1 is not true or false"),
        ("se", "identity", {"norm": "batch"}, "norm: 'batch' is not true or false"),
        ("se", "absorb", {"gate": "tanh1"}, "tanh1 is 1 at zero, and absorb needs 1/2"),
        ("se", "identity", {"rd_ratio": 0}, "rd_ratio: 0 is not a number above 0"),
        ("se", "identity", {"rd_base": "net"}, "rd_base: 'net' is none of site .*, block"),
        ("se_plain", "identity", {"rd_channels": 0}, "rd_channels: 0 is not an integer above 0"),
        ("ese", "identity", {"gate": "relu"}, "gate: 'relu' is none of"),
        ("eca", "identity", {"kernel_size": 4}, "kernel_size: 4 is not an odd integer above 0"),
        ("eca", "identity", {"gamma": 0}, "gamma: 0 is not a number above 0"),
        ("cbam", "identity", {"spatial_kernel_size": 8}, "spatial_kernel_size: 8 is not an odd integer"),
        ("cbam", "identity", {"mlp_bias": "yes"}, "mlp_bias: 'yes' is not true or false"),
        ("gc", "identity", {"fusion": "sum"}, "fusion: 'sum' is none of scale, add, both"),
        ("gc", "absorb", {"fusion": "add"}, "fusion: add has no gate for absorb to halve"),
        ("gc", "identity", {"rd_channels": 2}, "rd_channels: 2 is too narrow"),
        ("stn", "identity", {"depth": True}, "depth: True is not an integer above 0"),
        ("stn", "identity", {"depth": 60}, "depth: 60 is not an integer above 0, at most 10"),
    ],
)
def test_values_out_of_range_are_refused(name: str, init: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BLOCKS[name].resolve(site(), init, options)


@pytest.mark.parametrize(("name", "wrong", "right"), [("eca", "kernelsize", "kernel_size"), ("gc", "fuse", "fusion")])
def test_unknown_options_name_the_closest(name: str, wrong: str, right: str) -> None:
    with pytest.raises(RulesError, match=f"{name} has no option '{wrong}'.*{right}"):
        se_inject.inject(Net(), (3, 8, 6), {"block": {"name": name, wrong: 1}})


def test_defaults_of_se_are_what_they_were() -> None:
    """Plans made before read the same: new arguments appear only where an option or a layout asks for them."""
    kwargs = {"channels": C, "rd_channels": 8, "bias": True, "act": "relu", "gate": "sigmoid"}
    assert BLOCKS["se"].resolve(site(), "paper", {}) == kwargs
    assert BLOCKS["se"].resolve(site(), "identity", {}) == {**kwargs, "gain": 2.0, "zero_init": True}
    assert BLOCKS["se"].resolve(site("NHWC"), "paper", {}) == {**kwargs, "layout": "NHWC"}


# -- in a network -----------------------------------------------------------------------------------------------------
class Residual(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[d]
        norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[d]
        self.conv1, self.norm1 = conv(C, C, 3, padding=1, bias=False), norm(C)
        self.conv2, self.norm2 = conv(C, C, 3, padding=1, bias=False), norm(C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(x + y)


class Mlp(nn.Module):
    """A residual block on channels_last maps."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(C)
        self.fc1, self.fc2 = nn.Linear(C, C), nn.Linear(C, C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class Net(nn.Module):
    def __init__(self, layout: str = "NCHW") -> None:
        super().__init__()
        d = len(layout) - 2
        self.stem = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[d](3, C, 3, padding=1)
        self.last = layout.endswith("C")
        self.block = Mlp() if self.last else Residual(d)
        self.head = nn.Linear(C, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.block(x.movedim(1, -1)).movedim(-1, 1) if self.last else self.block(x)
        return self.head(x.flatten(2).mean(2))


SIZES = {
    "NCL": (3, 12), "NCHW": (3, 12, 8), "NCDHW": (3, 6, 8, 8), "NHWC": (3, 12, 8), "NDHWC": (3, 6, 8, 8), "NLC": (3, 12)
}  # fmt: skip


def modeling(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("modeling", folder / "modeling.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "layout", "init"),
    [(n, "NCHW", i) for n, b in BLOCKS.items() for i in b.inits]
    + [(n, lay, "identity") for n, b in BLOCKS.items() for lay in b.layouts if lay != "NCHW"],
)
def test_end_to_end(name: str, layout: str, init: str, tmp_path: Path) -> None:
    """Inject, check, save, load, and run from ``modeling.py``: the same outputs everywhere."""
    net, x = Net(layout).eval(), torch.randn(2, *SIZES[layout])
    rules = {"placement": "standard", "init": init, "block": name}
    injection = se_inject.inject(net, SIZES[layout], rules)
    assert [(d.block, d.site.layout) for d in injection.plan.insertions] == [(name, layout)]
    assert not [c for c in injection.report.checks if c.passed is False]
    with torch.no_grad():
        for parameter in injection.model.block.se.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    want = injection.model(x)
    assert not torch.equal(want, net(x))
    se_inject.save(injection, tmp_path / "out")
    loaded = se_inject.load(tmp_path / "out", Net(layout))
    text = (tmp_path / "out/modeling.py").read_text()
    assert "from se_inject" not in text and "import se_inject" not in text
    for again in (loaded, modeling(tmp_path / "out").load(model=Net(layout))):
        assert all(map(torch.equal, again.state_dict().values(), injection.model.state_dict().values()))
        torch.testing.assert_close(again(x), want)  # where a file's tensors lie in memory chooses between kernels


class Two(nn.Module):
    """Room for every block at once."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, C, 3, padding=1)
        self.blocks = nn.Sequential(*[Residual(2) for _ in BLOCKS])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.stem(x))


def test_all_blocks_in_one_file(tmp_path: Path) -> None:
    """The copies in ``modeling.py`` do not get in each other's way."""
    sites = [{"include": f"blocks.{i}", "block": name} for i, name in enumerate(BLOCKS)]
    injection = se_inject.inject(Two(), (3, 12, 8), {"placement": "standard", "sites": sites})
    assert [d.block for d in injection.plan.insertions] == list(BLOCKS)
    se_inject.save(injection, tmp_path / "out")
    x = torch.randn(2, 3, 12, 8)
    torch.testing.assert_close(modeling(tmp_path / "out").load(model=Two())(x), injection.model.eval()(x))


def test_a_start_that_a_block_has_not_is_a_skip_with_its_reason() -> None:
    with refused("start", "block cbam cannot start as absorb"):
        se_inject.inject(Net(), (3, 12, 8), {"placement": "standard", "init": "absorb", "block": "cbam"})


def test_a_layout_that_a_block_has_not_is_a_skip_with_its_reason() -> None:
    with refused("layout", r"layout NCL .* block stn takes NCHW, NCDHW"):
        se_inject.inject(Net("NCL"), (3, 12), {"placement": "standard", "block": "stn"})


@pytest.mark.parametrize("name", BLOCKS)
def test_a_second_run_finds_the_block(name: str) -> None:
    rules = {"placement": "standard", "block": name}
    once = se_inject.inject(Net().eval(), (3, 12, 8), rules).model
    with refused("gated", r"already gated by block\.se"):
        se_inject.plan(once, (3, 12, 8), rules)
    twice = se_inject.inject(once, (3, 12, 8), {**rules, "again": True})
    assert isinstance(twice.model.block.se_1, BLOCKS[name].module)


def test_an_entry_with_another_block_does_not_get_the_options_of_the_first() -> None:
    rules = {"block": {"name": "se", "gate": "hardsigmoid"}, "sites": [{"include": "*", "block": "eca"}]}
    (decision,) = se_inject.plan(Net(), (3, 12, 8), {"placement": "standard", **rules}).insertions
    assert decision.block == "eca" and decision.kwargs["gate"] == "sigmoid"


# -- blocks of the user's own -----------------------------------------------------------------------------------------
class Shift(nn.Module):
    """Adds a learned number to each channel."""

    def __init__(self, width: int, start: float = 0.0, axis: int = 1) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.full((width,), start))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.shift.reshape(1, -1, 1, 1)


class Narrow(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1]


class InPlace(Narrow):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2)


class Still(Narrow):
    """No parameters, no change."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1


NAME = f"{__name__}:Shift"


@pytest.fixture(autouse=True)
def unregistered() -> Any:
    yield
    REGISTERED.clear()


def inject(block: Any, **rules: Any) -> Any:
    return se_inject.inject(Net().eval(), (3, 12, 8), {"placement": "standard", "block": block, **rules})


@pytest.mark.parametrize(
    "block", [NAME, {"name": NAME}, Shift, {"name": Shift}, BlockSpec(NAME), BlockSpec(NAME, {"start": 0.0})]
)
def test_custom_block_by_name_or_class(block: Any, tmp_path: Path) -> None:
    injection = inject(block)
    (decision,) = injection.plan.insertions
    assert decision.block == NAME and decision.kwargs["width"] == C
    assert isinstance(injection.model.block.se, Shift)
    json.dumps(injection.plan.rules)
    se_inject.save(injection, tmp_path / "out")
    assert f"from {__name__} import Shift" in (tmp_path / "out/modeling.py").read_text()
    x = torch.randn(2, 3, 12, 8)
    torch.testing.assert_close(modeling(tmp_path / "out").load(model=Net())(x), injection.model(x))


def test_custom_block_without_parameters() -> None:
    assert isinstance(inject(Still).model.block.se, Still)


def test_custom_block_as_the_whole_of_the_rules() -> None:
    assert se_inject.plan(Net(), (3, 12, 8), BlockSpec(NAME)).insertions[0].block == NAME


def test_custom_block_that_moves_its_input_needs_start_paper() -> None:
    with refused("not-identity", r"does not start as the identity \(it moves its input by 0.5\); init paper"):
        inject({"name": Shift, "start": 0.5})
    injection = inject({"name": Shift, "start": 0.5}, init="paper")
    assert injection.plan.insertions[0].kwargs == {"width": C, "start": 0.5}
    with refused("start", "cannot start as absorb"):
        inject(Shift, init="absorb")


@pytest.mark.parametrize(
    ("block", "code", "message"),
    [
        (Narrow, "block-fails", r"Narrow\(channels=32\) returns torch.float32 \[2, 1, 7, 6\] .* keeps shape and type"),
        (InPlace, "block-fails", "writes into its input"),
        ({"name": Shift, "start": "far"}, "block-fails", r"Shift\(start='far', width=32\) fails on shape .* TypeError"),
        ({"name": Shift, "begin": 1}, "rules", "has no option 'begin'.*start"),
        ({"name": Shift, "start": nn.ReLU}, "rules", "options must be plain data"),
        (nn.Identity, "rules", "the first argument of its constructor must be the number of channels"),
        (int, "rules", "expected an nn.Module class"),
        ("no_such_module:Cls", "rules", "no module named 'no_such_module'"),
        (f"{__name__}:Shiftt", "rules", "has no 'Shiftt'.*Shift"),
        ("os:path", "rules", "standard library"),
    ],
)
def test_custom_block_that_breaks_the_contract(block: Any, code: str, message: str) -> None:
    with refused(code, message):
        inject(block)


def test_custom_block_is_tried_in_the_layout_of_the_site() -> None:
    with refused("block-fails", r"Shift\(width=32\) fails on shape \[2, 32, 7\] with RuntimeError"):
        se_inject.inject(Net("NCL"), (3, 12), {"placement": "standard", "block": Shift})


def test_files_import_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a rules file nor a plan gets a class imported; registered by the caller, both may name it."""
    (tmp_path / "mine_for_files.py").write_text(
        "from torch import nn\n\n"
        "class Mine(nn.Identity):\n    def __init__(self, channels):\n        super().__init__()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rules = tmp_path / "rules.yaml"
    rules.write_text("placement: standard\nblock: mine_for_files:Mine\n")
    with pytest.raises(RulesError, match=r"what a file says is not imported.*register_block"):
        se_inject.plan(Net(), (3, 12, 8), rules)
    assert "mine_for_files" not in sys.modules

    made = se_inject.plan(Net(), (3, 12, 8), {"placement": "standard", "block": "mine_for_files:Mine"})
    (tmp_path / "plan.json").write_text(dump(made))
    cls = sys.modules.pop("mine_for_files").Mine
    REGISTERED.clear()
    again = read_plan(tmp_path / "plan.json")
    with pytest.raises(PlanMismatchError, match=r"no class is registered as 'mine_for_files:Mine'.*register_block"):
        se_inject.apply(Net(), again)
    assert "mine_for_files" not in sys.modules

    assert se_inject.register_block(cls, "mine_for_files:Mine") == "mine_for_files:Mine"
    assert isinstance(se_inject.apply(Net(), again).block.se, cls)
    assert se_inject.plan(Net(), (3, 12, 8), rules).insertions == made.insertions


def test_registering() -> None:
    assert se_inject.register_block(Shift) == NAME
    assert se_inject.register_block(Shift, "shift") == "shift"
    assert find_block("shift").module is Shift and tuple(find_block("shift").options) == ("start", "axis")
    assert isinstance(find_block("se"), Block)
    with pytest.raises(ValueError, match=r"no block is called 'shifted'.*shift"):
        find_block("shifted")
    with pytest.raises(RulesError, match="block 'se' is of the table"):
        se_inject.register_block(Shift, "se")


def make_net() -> Net:
    return Net()


def test_custom_block_from_the_command_line(tmp_path: Path) -> None:
    """``--block pkg.mod:Class`` imports; reading the folder again needs it again."""
    out = str(tmp_path / "out")
    base = ["--model", f"{__name__}:make_net"]
    made = run("convert", f"{__name__}:make_net", "--random-init", "--input-size", "3,12,8", "--placement", "standard",
               "--block", NAME, "-o", out)  # fmt: skip
    assert made.exit_code == 0, made.output
    REGISTERED.clear()
    assert "no class is registered" in run("verify", out, *base).output
    assert run("verify", out, *base, "--block", NAME).exit_code == 0
    REGISTERED.clear()
    again = run("convert", f"{__name__}:make_net", "--random-init", "--input-size", "3,12,8", "--plan",
                f"{out}/plan.json", "--block", NAME, "-o", f"{out}2")  # fmt: skip
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(("far", "learning"), [(0.0, 11), (9.0, 1)])
def test_a_warp_that_points_outside_the_image_has_no_gradient(far: float, learning: int) -> None:
    """All samples are zeros there, whatever the map: the net cannot find back, and only the blend learns."""
    torch.manual_seed(0)
    module: Any = find_block("stn").module(3, depth=3, blend=True)
    with torch.no_grad():
        module.blend.fill_(0.5)
        module.localisation.fc2.bias[2] += far  # the shift in x, in half widths
    (module(torch.randn(2, 3, 32, 32)) ** 2).sum().backward()
    assert sum(bool(p.grad.any()) for p in module.parameters()) == learning
