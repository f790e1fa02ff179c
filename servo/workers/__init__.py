"""The worker process: its boot, the three worker classes, and their drivers."""
