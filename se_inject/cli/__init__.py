"""The command line: options are parsed here, one function of the library is called, its result is printed.

Exit codes: 0 done, 1 a refusal with one clear line, 2 wrong usage. Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

from importlib import import_module

import click

from se_inject._version import __version__
from se_inject.cli.parts import CONTEXT, Commands

COMMANDS = (  # file of this folder : function, in the order in which they are used
    "convert:convert",
    "batch:batch",
    "plan:plan",
    "sweep:sweep",
    "verify:verify",
    "remove:remove",
    "report:report",
    "listing:list_",
)


@click.group(cls=Commands, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="se-inject")
def main() -> None:
    """Splice channel attention into a pretrained PyTorch model, and prove that nothing else changed.

    \b
    Examples:
      se-inject convert timm:resnet50 --pretrained -o out
      se-inject plan torchvision:mobilenet_v2
      se-inject verify out
    """


for file, _, function in (line.partition(":") for line in COMMANDS):
    main.add_command(getattr(import_module(f"{__name__}.{file}"), function))
