"""The configuration: read from the YAML file and the environment into `Settings`, with every error found at once."""
