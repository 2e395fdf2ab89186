"""Continuous batching: every member decodes all active requests in one batch.

::

    Job ──► Batcher ──► Slots: a free one, with the beginning of the prompt if any slot has read it
                          │
                          ▼
    Engine.stream in a task ──► Conductor: waits ──► one batch per decoder and round ──► row ──► ...
                          │
                          ▼
                       Events
"""

from logitfuse.batching.batcher import Batcher, Done, Event, Job, Listener, Ticket

__all__ = ["Batcher", "Done", "Event", "Job", "Listener", "Ticket"]
