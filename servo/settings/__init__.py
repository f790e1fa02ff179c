"""Settings: each declared once (`schema`); files, the environment and flags give (`sources`)."""
