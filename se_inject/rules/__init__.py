"""From sites to a plan: rules are read, and each site is taken or skipped with a reason."""
