"""The error log, the access log, and the files behind them."""
