"""The `.pt`: its manifest, its blobs, writing, loading, looking into it."""
