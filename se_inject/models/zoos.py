"""Model specs to models: ``timm:NAME``, ``torchvision:NAME``, ``pkg.module:factory``, with constructor arguments."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from torch import nn

from se_inject.errors import LoadError, closest, one_line
from se_inject.importing import factory_call, import_or_refuse
from se_inject.inputs import default_size
from se_inject.models.offline import cache_only_without_network
from se_inject.types import InputKind

DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
# Constructor arguments that would load weights behind the tool's back.
RESERVED = {"timm": ("pretrained", "checkpoint_path"), "torchvision": ("pretrained", "weights"), "": ("pretrained",)}


# Packages of torchvision whose models take other things than one batch, with the size of an image that they run on.
TORCHVISION_KINDS: dict[str, tuple[InputKind, tuple[int, ...]]] = {
    "detection": ("list", (3, 224, 224)),
    "optical_flow": ("pair", (3, 128, 128)),
}


def build_model(
    spec: str, model_args: Mapping[str, Any] | None = None, *, pretrained: bool = False, allow_factory: bool = False
) -> nn.Module:
    """The model that ``spec`` names, in eval mode, on the default device (``with torch.device("meta")`` works).

    ``model_args`` go to its constructor. ``pretrained`` (default False) fetches the zoo's own weights; a factory is
    called with ``pretrained=True`` if it takes that, and else trusted to bring its own. ``allow_factory`` (default
    False) permits ``pkg.module:factory``, which imports and runs code. Raises ``LoadError``.
    """
    zoo, name = split_spec(spec)
    args = dict(model_args or {})
    for arg in RESERVED[zoo if zoo in RESERVED else ""]:
        if arg in args:
            raise LoadError(f"{arg} is not a model arg here; give --pretrained, --checkpoint or --random-init.")
    if zoo in ZOOS:
        make = ZOOS[zoo](spec, name, args, pretrained)
    elif allow_factory:
        make = factory_call(spec, zoo, name, args, pretrained)
    else:
        raise LoadError(f"{spec}: a factory runs code of your own, and is taken from the command line only.")
    try:
        model = make()
    except (Exception, SystemExit) as error:  # whatever a foreign constructor raises
        raise _explain(spec, args, pretrained, error) from error
    if not isinstance(model, nn.Module):
        raise LoadError(f"{spec}: returned {type(model).__name__}, not a torch.nn.Module.")
    return model.eval()


def split_spec(spec: str) -> tuple[str, str]:
    """``("timm", "resnet18")``, or the module and the attribute path of a factory.

    Raises ``LoadError`` when it is neither.
    """
    left, colon, right = spec.partition(":")
    if colon and right and (left in ZOOS or (DOTTED.fullmatch(left) and DOTTED.fullmatch(right))):
        return left, right
    hint = f" Did you mean 'timm:{spec}'?" if re.fullmatch(r"[\w.\-]+", spec) else ""
    raise LoadError(f"{spec!r} names no model; write timm:NAME, torchvision:NAME or pkg.module:factory.{hint}")


def input_size(spec: str, model: nn.Module, model_args: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Channels and sides of one input, from the model's configuration and the arguments that change them."""
    zoo, name = split_spec(spec)
    size = default_size(model) or (_torchvision_size(name) if zoo == "torchvision" else None)
    if size is None:
        return None
    # a ViT of torchvision takes one size alone, which need not be that of its default weights
    side = model_args.get("img_size", model_args.get("image_size", getattr(model, "image_size", None)))
    if side is not None:
        size = (size[0], *(side if isinstance(side, tuple | list) else (side,) * (len(size) - 1)))
    return (int(model_args.get("in_chans", size[0])), *map(int, size[1:]))


def input_kind(spec: str) -> InputKind:
    """In which of ``inputs.KINDS`` the model takes its images: torchvision's detectors and its optical flow differ."""
    zoo, name = split_spec(spec)
    package = _special(name) if zoo == "torchvision" else ""
    return TORCHVISION_KINDS[package][0] if package else "batch"


def weights_name(spec: str, model: nn.Module) -> str:
    """Which weights ``pretrained`` took, in the zoo's own words; empty for a factory."""
    zoo, name = split_spec(spec)
    if zoo == "torchvision":
        return str(import_or_refuse("torchvision").models.get_model_weights(name)["DEFAULT"])
    config = getattr(model, "pretrained_cfg", None)
    if not isinstance(config, dict) or not config.get("architecture"):
        return ""
    return ".".join(filter(None, (config["architecture"], config.get("tag"))))


def _timm(spec: str, name: str, args: dict[str, Any], pretrained: bool) -> Callable[[], Any]:
    timm = import_or_refuse("timm")
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise LoadError(f"{spec}: timm has no model {base!r}.{closest(base, timm.list_models())}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise LoadError(f"{spec}: timm has no weights {tag!r} of {base}.{closest(tag, tags)}")
    if pretrained and not timm.is_model_pretrained(name):
        raise LoadError(f"{spec}: timm has no pretrained weights of {base}; give --checkpoint or --random-init.")
    make = functools.partial(_quietly, timm.create_model, name, pretrained=pretrained, **args)
    return cache_only_without_network()(make) if pretrained else make


def _torchvision(spec: str, name: str, args: dict[str, Any], pretrained: bool) -> Callable[[], Any]:
    models = import_or_refuse("torchvision").models
    if name not in models.list_models():
        raise LoadError(f"{spec}: torchvision has no model {name!r}.{closest(name, models.list_models())}")
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        args.setdefault("weights_backbone", None)
    weights = "DEFAULT" if pretrained else None
    return functools.partial(_quietly, models.get_model, name, weights=weights, **args)


ZOOS: dict[str, Callable[[str, str, dict[str, Any], bool], Callable[[], Any]]] = {
    "timm": _timm,
    "torchvision": _torchvision,
}


def _torchvision_size(name: str) -> tuple[int, ...] | None:
    """The crop (segmentation: the resized) size of the preprocessing that belongs to the default weights; of videos 16
    frames."""
    models = import_or_refuse("torchvision").models
    if package := _special(name):
        return TORCHVISION_KINDS[package][1]
    try:
        transforms = models.get_model_weights(name)["DEFAULT"].transforms()
    except (KeyError, ValueError, AttributeError, TypeError):
        return None
    sides = {"SemanticSegmentation": "resize_size"}
    side = getattr(transforms, sides.get(type(transforms).__name__, "crop_size"), None)
    frames = (16,) if type(transforms).__name__ == "VideoClassification" else ()
    return (3, *frames, side[0], side[-1]) if side else None


def _special(name: str) -> str:
    """The package in ``TORCHVISION_KINDS`` that builds the model; empty for the others."""
    package = import_or_refuse("torchvision").models.get_model_builder(name).__module__.split(".")
    return next((part for part in TORCHVISION_KINDS if part in package), "")


def _quietly(make: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a zoo's constructor: no notes to its own developers, and no unrestricted unpickling of what it fetches."""
    with warnings.catch_warnings(), _weights_only():
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torchvision\.")
        return make(*args, **kwargs)


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """torchvision fetches weights through ``torch.hub`` with ``weights_only=False``; this overrules it."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _explain(spec: str, args: Mapping[str, Any], pretrained: bool, error: BaseException) -> LoadError:
    network = ("httpx", "requests", "urllib3", "huggingface_hub")
    if pretrained and (isinstance(error, OSError) or type(error).__module__.partition(".")[0] in network):
        return LoadError(
            f"{spec}: the pretrained weights could not be fetched: {_network_reason(error)}. "
            "Check the connection, or download the file and give it with --checkpoint."
        )
    given = f" with {', '.join(f'{k}={v!r}' for k, v in args.items())}" if args else ""
    return LoadError(f"{spec}{given}: cannot be built: {one_line(error)}")


def _network_reason(error: BaseException) -> str:
    """Without a network, the hub's own text is about its cache and its settings."""
    if type(error).__name__ in ("LocalEntryNotFoundError", "OfflineModeIsEnabled"):
        return "they are not in the local cache, and the hub cannot be reached"
    return one_line(getattr(error, "reason", None) or error)


def check_known(spec: str, known: Collection[str]) -> None:
    """Raise ``LoadError`` when a zoo's model, without timm's tag of weights, is not among ``known``."""
    if spec.partition(".")[0] not in known:
        raise LoadError(f"no model is called {spec!r}.{closest(spec, known)}")


def known_models() -> list[str]:
    """Specs of every model of the installed libraries, ``timm:resnet18`` and so on, sorted."""
    found: list[str] = []
    for library in ("timm", "torchvision"):
        try:
            package = import_or_refuse(library if library == "timm" else f"{library}.models")
        except LoadError:  # not installed: the other one may be
            continue
        found += [f"{library}:{name}" for name in sorted(package.list_models())]
    return found
