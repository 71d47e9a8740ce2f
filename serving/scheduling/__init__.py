"""Which request's work runs next: before it has a device (`turns.py`), and on the device's streams.

A request's dense half is a `Job` of calls, one slice or tile each. `StreamScheduler` has a thread for each
stream of a device, shared by all models: it takes the next call of the most urgent job (`order.py`), so that
a small request overtakes the slices of a large one, puts small requests of one model together into one call,
and refuses at once what cannot end before its deadline (`costs.py`).
"""

from serving.scheduling.jobs import Job
from serving.scheduling.load import KeyLoad, StreamLoad
from serving.scheduling.streams import MAX_WAITING, SchedulingOptions, StreamScheduler
from serving.scheduling.turns import Turns
from serving.scheduling.urgency import ANY_TIME, PRIORITY, PROOF, SHADOW, Urgency, priority_of

__all__ = [
    "ANY_TIME",
    "KeyLoad",
    "MAX_WAITING",
    "PRIORITY",
    "PROOF",
    "SHADOW",
    "Job",
    "SchedulingOptions",
    "StreamLoad",
    "StreamScheduler",
    "Turns",
    "Urgency",
    "priority_of",
]
