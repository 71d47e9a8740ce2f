"""What a call that changes what is served must pass, in every protocol."""

from serving.auth import require
from serving.errors import UnsupportedError
from serving.repository import ModelRepository


def check_admin(repository: ModelRepository, model: str) -> None:
    """Raises `PermissionDeniedError` for a caller without `admin` for the model (`*`: all of them), and
    `UnsupportedError` where several processes share the port: a call reaches one of them."""
    require("admin", model)
    if repository.one_of_many:
        raise UnsupportedError(
            "this server has several workers, and a call reaches one of them: change the files of "
            "--model_config_file (with --model_config_file_poll_wait_seconds) or of the models' directory, "
            "which all workers watch, or start the server with --workers 1"
        )
