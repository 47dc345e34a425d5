"""Training of hidden-state drafters."""

from paceline.runtime.compute import wait_briefly

wait_briefly()  # here, since torch is loaded with the modules of this package
