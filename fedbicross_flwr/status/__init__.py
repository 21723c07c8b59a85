"""How far a run is, read from its folder alone."""
