"""Output folders and files: written all or nothing, and read again."""
