"""The sync and thread workers."""
