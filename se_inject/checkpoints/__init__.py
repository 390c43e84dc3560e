"""What a checkpoint is, by its bytes, and its tensors, read without running it."""
