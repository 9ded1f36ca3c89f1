"""loopbox_agent: the agent's HTTP service: runs of a local model with sandboxed tools."""

__version__ = "0.1.0"
