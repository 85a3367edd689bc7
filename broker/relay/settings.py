"""The settings of a relay process."""

from pydantic import Field, SecretStr

from custody.settings import ProcessSettings, QueueSettings, TaskSettings


class RelaySettings(QueueSettings, TaskSettings, ProcessSettings):
    amqp_url: SecretStr = Field(
        description="RabbitMQ, amqp:// or amqps://", examples=["amqps://wharf-relay:SECRET@rabbitmq:5671/wharf"]
    )
    window: int = Field(default=4000, ge=1, description="Tasks in the queue of each pool and class at most")
    batch: int = Field(default=2000, ge=1, description="Tasks released together")
    health_port: int = Field(default=9092, ge=0, description="/livez, /readyz, /metrics; 0: none")
    health_host: str = Field(default="127.0.0.1", description="Address of the health port")
