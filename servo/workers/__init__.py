"""What runs in a worker process: one life (`base`), two drivers (`poller`, `stream`), three classes."""
