"""Runs a script whose accelerate shards on CPU processes as well: by itself it does so on accelerators only, and falls
back to replicas, silently.

    accelerate launch --use_fsdp ... tests/training/accelerate_fsdp.py SCRIPT [ARGUMENT]...
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

_init = AcceleratorState.__init__


def init(self: Any, *args: Any, fsdp_plugin: Any = None, **options: Any) -> None:
    _init(self, *args, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None:
        self.fsdp_plugin = fsdp_plugin
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP


if __name__ == "__main__":
    AcceleratorState.__init__ = init
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
