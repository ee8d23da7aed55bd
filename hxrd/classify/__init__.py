"""Archive and model to ranked space groups."""
