"""The target verifier: the only one that forms steps, and the owner of every session's committed tokens.

service   translate, call, translate: TargetService over grpc.aio
streams   the way back to each router
steps     the loop: plan, engine, complete, deliver
verifier  who may take a round, what the next step is, what it commits; pure, as is everything below
sessions  sessions held, and KV space promised        schedule  rows of a step, fairly
session   one session: ledger, answer, KV length      answer    text, and where it ends
feeds     whose context features go where, how far   feeder    their streams to draft workers
grammars  compiling grammars before sessions open
spans     the seam for tracing                        assembly  from a configuration to all of it
"""

from paceline.runtime.compute import wait_briefly

wait_briefly()  # here, since torch is loaded with the modules of this package
