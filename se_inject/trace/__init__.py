"""A forward, recorded: one small graph for each call of each module, and where in the source each value is made."""
