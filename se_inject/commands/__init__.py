"""What each command does, from its options to a result; the command line parses before and prints after."""
