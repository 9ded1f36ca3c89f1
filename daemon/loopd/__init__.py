"""loopd: the daemon that keeps one host's model, agent and sandboxes serving."""
