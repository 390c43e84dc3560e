"""Many models in one command: what is to be done, by how many processes, and what became of it."""
