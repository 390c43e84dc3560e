"""``se-inject batch``: what is to be done, and what became of it."""
