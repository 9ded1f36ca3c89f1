"""cli: loopctl, the command line over the control API."""
