"""The registry planes against real PostgreSQL and real stores: what a client or a peer node would see."""
