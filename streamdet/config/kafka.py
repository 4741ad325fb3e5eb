"""The cluster, and how to log in there."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from streamdet.config.section import Section
from streamdet.errors import ConfigError


class Security(Section):
    """How to reach a protected Kafka."""

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="Transport and login, in Kafka's own words."
    )
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        None, description="SASL mechanism; needed with a SASL protocol."
    )
    username: str | None = Field(None, description="SASL user.")
    password: SecretStr | None = Field(None, description="SASL password; better as ${NAME} or password_file.")
    password_file: Path | None = Field(None, description="File whose content is the SASL password.")
    ca_file: Path | None = Field(
        None, description="PEM file of the authority that signed the brokers' certificates."
    )
    cert_file: Path | None = Field(None, description="PEM file of this client's certificate (mutual TLS).")
    key_file: Path | None = Field(None, description="PEM file of this client's private key (mutual TLS).")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.protocol.startswith("SASL"):
            missing = [n for n in ("mechanism", "username") if getattr(self, n) is None]
            if self.password is None and self.password_file is None:
                missing.append("password or password_file")
            if missing:
                raise ValueError(f"protocol {self.protocol} needs {', '.join(missing)}")
        if self.password is not None and self.password_file is not None:
            raise ValueError("give password or password_file, not both")
        return self

    @model_validator(mode="after")
    def _all_used(self) -> Self:
        login = self.changed("mechanism", "username", "password", "password_file")
        if login and not self.protocol.startswith("SASL"):
            raise ValueError(
                f"protocol {self.protocol} does not log in, and would not use {', '.join(login)}: set protocol to "
                "SASL_SSL or SASL_PLAINTEXT, or leave them out"
            )
        files = self.changed("ca_file", "cert_file", "key_file")
        if files and not self.protocol.endswith("SSL"):
            raise ValueError(
                f"protocol {self.protocol} does not encrypt, and would not use {', '.join(files)}: set protocol to SSL "
                "or SASL_SSL, or leave them out"
            )
        if self.key_file is not None and self.cert_file is None:
            raise ValueError(
                "key_file without the certificate that it belongs to: set cert_file, or leave key_file out"
            )
        return self

    def secret(self) -> str | None:
        """The password from wherever it is kept.

        Raises:
            ConfigError: the file cannot be read.
        """
        if self.password_file is not None:
            try:
                return self.password_file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"kafka.security.password_file: cannot read it: {error}") from error
        return None if self.password is None else self.password.get_secret_value()


class Kafka(Section):
    """The cluster that is read from and written to."""

    bootstrap_servers: str = Field(
        "localhost:9092",
        min_length=1,
        description="host:port of one or more brokers, separated by commas.",
    )
    security: Security = Field(Security(), description="Encryption and login.")
