"""loopbox_browser: the tools of a sandbox that has a browser, beside those of the tool runner."""

__version__ = "0.1.0"
