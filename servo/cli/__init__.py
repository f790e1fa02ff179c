"""The commands. Only here do errors become messages and exit codes."""
