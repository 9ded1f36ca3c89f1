"""loopbox_toolrunner: the tools of one sandbox, as an MCP server on a unix socket."""

__version__ = "0.1.0"
