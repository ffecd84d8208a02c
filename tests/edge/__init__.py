"""What a client sees of a node's HTTP edge, over real sockets."""
