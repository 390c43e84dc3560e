"""``se-inject sweep``: costs of many models over a grid of rules."""
