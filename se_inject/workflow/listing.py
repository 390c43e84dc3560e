"""``se-inject list``: each listing imports only what it lists."""

from __future__ import annotations

import fnmatch

from se_inject.errors import LoadError


def listing(what: str, pattern: str) -> list[dict[str, str]]:
    """Rows of ``se-inject list``."""
    if what == "placements":
        from se_inject.search.placements import PLACEMENTS

        rows = [{"placement": "auto", "where": "inner for depthwise blocks, standard for other residual blocks"}]
        return rows + [{"placement": n, "where": " ".join((p.__doc__ or "").split())} for n, p in PLACEMENTS.items()]
    if what == "presets":
        from se_inject.rules.presets import PRESETS

        return [{"preset": name, "selects": p.selects, "paper": p.paper} for name, p in PRESETS.items()]
    if what == "rules":
        from se_inject.rules.schema import FIELDS

        return [{"key": name, "what": f.doc} for name, f in FIELDS.items()]
    if what == "blocks":
        from se_inject.blocks import BLOCKS

        return [
            {
                "block": name,
                "layouts": ", ".join(block.layouts),
                "starts": ", ".join(block.inits),
                "options": ", ".join(block.options),
                "paper": block.paper,
            }
            for name, block in BLOCKS.items()
        ]
    from se_inject.models.zoos import known_models

    names = [name for name in known_models() if fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name, f"*:{pattern}")]
    if not names:
        raise LoadError(f"no model is called {pattern!r}; patterns are globs, such as '*resnet50*'.")
    return [{"model": name} for name in names]
