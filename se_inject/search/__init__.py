"""From a model to its sites: a forward is traced, module by module, and the graphs are searched for places."""
