"""Fields of one folder over HTTP, for pages and programs on this machine."""
