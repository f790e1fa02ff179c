"""The commands `servo` and `servoctl`. They turn errors into messages and exit codes."""
