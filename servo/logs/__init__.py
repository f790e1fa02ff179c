"""The error log and the access log, the files behind them, and the user's logging configuration."""
