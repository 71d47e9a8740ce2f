"""TensorFlow Serving's ModelService: what became of a model's versions, and another configuration."""

import logging
from dataclasses import dataclass

import grpc

from serving.auth import ALL_MODELS, require
from serving.data_plane import check_name
from serving.model_config import model_configs
from serving.monitoring.ended import Ended
from serving.protocols.administration import check_admin
from serving.protocols.grpc_calls import handler, parse
from serving.protocols.prediction_service import model_ref
from serving.repository import ModelRepository
from serving.scheduling import Urgency
from serving.versions import VersionStatus
from serving.wire import model_service_pb2 as pb
from serving.wire.reflection import MODEL_SERVICE
from serving.workers import Workers

log = logging.getLogger("jaxrank")


@dataclass(frozen=True)
class ModelService:
    """The two calls, from request bytes to response bytes; `handler` binds them under the public name."""

    repository: ModelRepository

    def handler(self, workers: Workers, ended: Ended) -> grpc.GenericRpcHandler:
        """For `grpc.Server.add_generic_rpc_handlers`."""
        return handler(
            MODEL_SERVICE,
            {"GetModelStatus": self.status, "HandleReloadConfigRequest": self.reload_config},
            workers,
            ended,
        )

    def status(self, data: bytes, urgency: Urgency) -> bytes:
        ref = model_ref(parse(pb.GetModelStatusRequest, data).model_spec)
        check_name(ref)
        require("status", ref.name)
        return status_response(self.repository.statuses(ref.name, ref.version, ref.label)).SerializeToString()

    def reload_config(self, data: bytes, urgency: Urgency) -> bytes:
        """As TensorFlow Serving does, it answers when what is new is loaded, and serves nothing else from
        then on."""
        check_admin(self.repository, ALL_MODELS)
        request = parse(pb.ReloadConfigRequest, data)
        models = model_configs(request.config)
        log.info("another configuration by RPC: %s", ", ".join(f"{m.name} in {m.base_path}" for m in models))
        self.repository.reconfigure(models)
        return pb.ReloadConfigResponse(status=pb.StatusProto()).SerializeToString()


def status_response(statuses: list[VersionStatus]) -> pb.GetModelStatusResponse:
    """What GetModelStatus answers, over gRPC and REST."""
    return pb.GetModelStatusResponse(
        model_version_status=[
            pb.ModelVersionStatus(
                version=status.version,
                state=status.state,
                status=pb.StatusProto(
                    error_code=pb.StatusProto.UNKNOWN if status.error else pb.StatusProto.OK,
                    error_message=status.error,
                ),
            )
            for status in statuses
        ]
    )
