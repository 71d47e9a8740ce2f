"""Which request's work runs next on a device's streams.

A request's dense half is a `Job` of calls, one slice or tile each. `StreamScheduler` has a thread for each
stream of a device, shared by all models: it takes the next call of the most urgent job (`order.py`), so that
a small request overtakes the slices of a large one, puts small requests of one model together into one call,
and refuses at once what cannot end before its deadline (`costs.py`).
"""

from serving.scheduling.jobs import Job
from serving.scheduling.load import KeyLoad, StreamLoad
from serving.scheduling.streams import SchedulingOptions, StreamScheduler
from serving.scheduling.urgency import ANY_TIME, BACKGROUND, PRIORITY, Urgency, priority_of

__all__ = [
    "ANY_TIME",
    "BACKGROUND",
    "KeyLoad",
    "PRIORITY",
    "Job",
    "SchedulingOptions",
    "StreamLoad",
    "StreamScheduler",
    "Urgency",
    "priority_of",
]
