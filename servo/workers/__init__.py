"""What runs in a worker process: a life (`base`), two drivers, three worker classes."""
