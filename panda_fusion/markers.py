"""The two pluggy markers: `hookspec` marks a specification, `hookimpl` marks a plugin's implementation."""

import pluggy

PROJECT = "panda_fusion"
"""The pluggy project name and the entry point group that plugins register under."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
