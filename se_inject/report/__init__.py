"""One report, and all the ways to look at it."""
