"""Splice Squeeze-and-Excitation and related attention blocks into any PyTorch model, pretrained weights kept.

>>> import se_inject, torchvision
>>> result = se_inject.inject(torchvision.models.resnet50(), (3, 224, 224))
>>> result.model, result.plan, result.report
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from se_inject._version import __version__ as __version__

# Name -> module, imported when first used: `se-inject --help` answers without importing torch.
_INDEX = {
    "plan": "api",
    "inject": "api",
    "apply": "api",
    "remove": "api",
    "cost": "api",
    "gates": "api",
    "prune": "training.prune",
    "to_graph": "api",
    "save": "api",
    "load": "api",
    "save_adapter": "api",
    "load_adapter": "api",
    "read_plan": "api",
    "freeze_base": "training.freeze",
    "unfreeze": "training.freeze",
    "param_groups": "training.groups",
    "trainable_summary": "training.summary",
    "register_block": "blocks",
    "Injection": "api",
    "Pruning": "training.prune",
    "BlockSpec": "types",
    "Plan": "types",
    "Report": "types",
    "Cost": "types",
    "Gates": "checks.gates",
    "GateStats": "types",
    "SEInjectError": "errors",
    "LoadError": "errors",
    "TraceError": "errors",
    "RulesError": "errors",
    "PlanMismatchError": "errors",
    "SpliceError": "errors",
    "VerifyError": "errors",
    "WriteError": "errors",
}
__all__ = [*_INDEX, "__version__"]

if TYPE_CHECKING:
    from se_inject.api import Injection as Injection
    from se_inject.api import apply as apply
    from se_inject.api import cost as cost
    from se_inject.api import gates as gates
    from se_inject.api import inject as inject
    from se_inject.api import load as load
    from se_inject.api import load_adapter as load_adapter
    from se_inject.api import plan as plan
    from se_inject.api import read_plan as read_plan
    from se_inject.api import remove as remove
    from se_inject.api import save as save
    from se_inject.api import save_adapter as save_adapter
    from se_inject.api import to_graph as to_graph
    from se_inject.blocks import register_block as register_block
    from se_inject.checks.gates import Gates as Gates
    from se_inject.errors import LoadError as LoadError
    from se_inject.errors import PlanMismatchError as PlanMismatchError
    from se_inject.errors import RulesError as RulesError
    from se_inject.errors import SEInjectError as SEInjectError
    from se_inject.errors import SpliceError as SpliceError
    from se_inject.errors import TraceError as TraceError
    from se_inject.errors import VerifyError as VerifyError
    from se_inject.errors import WriteError as WriteError
    from se_inject.training.freeze import freeze_base as freeze_base
    from se_inject.training.freeze import unfreeze as unfreeze
    from se_inject.training.groups import param_groups as param_groups
    from se_inject.training.prune import Pruning as Pruning
    from se_inject.training.prune import prune as prune
    from se_inject.training.summary import trainable_summary as trainable_summary
    from se_inject.types import BlockSpec as BlockSpec
    from se_inject.types import Cost as Cost
    from se_inject.types import GateStats as GateStats
    from se_inject.types import Plan as Plan
    from se_inject.types import Report as Report


def __getattr__(name: str) -> Any:
    if name not in _INDEX:
        raise AttributeError(f"module 'se_inject' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"se_inject.{_INDEX[name]}"), name)


def __dir__() -> list[str]:
    return __all__
