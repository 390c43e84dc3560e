"""The command line: options are parsed here, one function of the library is called, its result is printed.

Exit codes: 0 done, 1 a refusal with one clear line, 2 wrong usage. Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import click

from se_inject._version import __version__
from se_inject.cli.batch import batch
from se_inject.cli.convert import convert
from se_inject.cli.listing import list_
from se_inject.cli.options import CONTEXT
from se_inject.cli.parts import Commands
from se_inject.cli.plan import plan
from se_inject.cli.remove import remove
from se_inject.cli.report import report
from se_inject.cli.sweep import sweep
from se_inject.cli.verify import verify


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


for command in (convert, batch, plan, sweep, verify, remove, report, list_):  # in the order in which they are used
    main.add_command(command)
