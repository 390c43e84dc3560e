"""From a plan to a rewritten model: new forwards from the old sources, and modules in their slots."""
