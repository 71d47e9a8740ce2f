"""Who may do what, from `--auth-config` (docs/security.md).

`config.py` reads the file. `access.py` finds the caller of a request by its token or certificate, and reads
the file again when it changes. `caller.py` is what a caller may do and how much of it; the protocols and the
data plane ask it through `require` and `charge`, which allow everything where there is no file.
"""

from serving.auth.access import Access as Access
from serving.auth.caller import CALLER as CALLER
from serving.auth.caller import Caller as Caller
from serving.auth.caller import calling as calling
from serving.auth.caller import charge as charge
from serving.auth.caller import charge_request as charge_request
from serving.auth.caller import may as may
from serving.auth.caller import require as require
from serving.auth.config import ALL_MODELS as ALL_MODELS
from serving.auth.config import AuthConfigError as AuthConfigError
