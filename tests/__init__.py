"""What a user or a peer would check."""
