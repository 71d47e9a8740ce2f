"""TensorFlow's start-up chatter, kept out of a command's output."""

import logging
import os


def import_quietly() -> None:
    """Imports TensorFlow and looks for devices, dropping what its native code writes to stderr before its
    log level counts. Python exceptions are raised as ever.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        import tensorflow as tf

        tf.get_logger().setLevel(logging.ERROR)
        # Devices are looked for at the first use, which is as chatty as the import.
        tf.config.list_physical_devices()
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
