"""The settings' declarations, one module per group. `servo.settings.schema` joins them."""
