"""A worker's end of the messages between processes."""
