"""The error log and the access log, their files, and the user's logging configuration."""
