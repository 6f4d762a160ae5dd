"""The options of `model follow`: those of a version of a repository, and how the registry and the server are followed.

Owns: one option class. Must not know: how anything is followed.
"""

from __future__ import annotations

from dataclasses import dataclass

from genrec_batch.core.declare import check_at_least, option, same_as
from genrec_batch.core.errors import ConfigError
from genrec_batch.core.options import RegistryConfig
from genrec_batch.serving.options import RepositoryConfig


@dataclass(frozen=True, kw_only=True)
class FollowConfig(RepositoryConfig):
    """What `model follow` takes beside NAME."""

    registry: str | None = same_as(RegistryConfig, "registry")
    triton: str | None = option(
        "URL of the HTTP port of the Triton server over the repository, such as http://127.0.0.1:8000, which is told "
        "to load a version and asked whether it answers. Without it, a version is checked and put in place only.",
        panel="Model",
        identity="none",
    )
    every: float = option("Seconds between two looks at the registry.", 10.0, panel="Model", identity="none")
    once: bool = option("Look once, and end.", default=False, panel="Model", flags="--once", identity="none")
    load_timeout: float = option(
        "Seconds in which the server has to load a version.", 600.0, panel="Model", identity="none"
    )
    keep: int = option(
        "Versions that stay in the repository, the live one among them.", 3, panel="Output", identity="none"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, keep=1)
        if self.out is None:
            raise ConfigError("model follow needs --out REPO, the folder of the model repository")
        if not 0.1 <= self.every <= 86_400:
            raise ConfigError(f"--every {self.every:g}: 0.1 to 86400 seconds")
        if not 1 <= self.load_timeout <= 86_400:
            raise ConfigError(f"--load-timeout {self.load_timeout:g}: 1 to 86400 seconds")
