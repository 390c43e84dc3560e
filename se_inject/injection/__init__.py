"""From a model to a plan, and from a plan to a checked result."""
