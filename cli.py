"""Runs the command line from a checkout: ``python cli.py convert timm:resnet18 --pretrained -o out``."""

import sys

from se_inject.cli import main

if __name__ == "__main__":
    sys.exit(main())
