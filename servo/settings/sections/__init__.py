"""The declarations, a module for each group of sections. `servo.settings.schema` joins them."""
