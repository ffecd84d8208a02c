"""The node: configuration, the supervisor, the registry API, records, hints and the command line."""
