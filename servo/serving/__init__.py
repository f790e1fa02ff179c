"""Serves from Python: `servo.run`, `servo.serve` and `servo.Server`."""
