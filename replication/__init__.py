"""The core: where blobs belong, where to read and write them, whether a store is well, and the loops that pay debt."""
