"""Training an injected model: what is frozen, what the optimizer gets, how much that is."""
