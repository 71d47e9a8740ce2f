"""How a version of a model comes into service, proves itself, and goes.

`loading.py` loads it beside what is served: within the memory limit (`memory.py`), every file verified, the
recorded scores met on the engine that will serve (`self_check.py`), warmed up (`warmup.py`). The repository
switches; `rollback.py` judges the first requests and switches back. `trials.py` splits requests between the
newest version and the one before it; `shadow.py` scores requests on both and reports how they differ.
"""

from serving.lifecycle.options import LifecycleOptions

__all__ = ["LifecycleOptions"]
