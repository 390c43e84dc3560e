"""From a name and a checkpoint to a model with its weights."""
