"""One file per command, imported when the command is used; each has a click command called `command`."""
