"""Where an identifier becomes a crystal: one module a source, one small protocol."""
