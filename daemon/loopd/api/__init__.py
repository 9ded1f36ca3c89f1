"""api: the control API, its wire types and its routes."""
