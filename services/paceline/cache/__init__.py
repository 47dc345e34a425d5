"""Caches that outlive a process. numpy only: routers and the command line import it, too."""
