"""The draft worker: a service, the sessions it holds, and a lane for each drafter; see ``worker``."""

from paceline.runtime.compute import wait_briefly

wait_briefly()  # here, since torch is loaded with the modules of this package
