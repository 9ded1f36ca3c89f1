"""loopbox_egress: the proxy that takes what sandboxes ask of the hosts they were granted out of the appliance."""
