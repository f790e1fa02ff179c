"""What the servers serve while they are measured; none does more than it must."""
