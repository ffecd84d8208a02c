"""The push plane: uploads, blobs, manifests and deletes, computed without knowing any web framework."""
