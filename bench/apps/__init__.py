"""The applications that the servers serve while they are measured, kept as small as possible."""
