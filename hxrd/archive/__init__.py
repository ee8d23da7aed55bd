"""The Zarr archive of patterns: schema, writer, reader."""
