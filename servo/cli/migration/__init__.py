"""`servo migrate`: turns the configuration of other servers into `servo.toml`."""
