"""From recorded graphs to sites: every place where a block can stand, whether or not it is wanted there."""
