"""Files in and out: what a checkpoint is, by its bytes, read without running it; outputs written all or nothing."""
