"""`model follow`: what an alias of the registry means becomes the live version of a running Triton server.

Owns: the order of a swap, what is done about one that fails or was killed, when it is tried again. Must not know: what
is in a version (`repository`), how it appears (`versions`), the server's protocol (`server`). In: a registry, a
repository, the URL of a server. Out: versions of the repository, and lines of the log.

A swap: the files of the registry's version are checked and copied, the copy is opened and answers in a process of its
own (`expected`), the version appears, the server loads it and compares its own answers, and is asked. Until then the
version before answers; a version that fails is taken out of the repository. A swap that was killed is undone by the
next look, or confirmed where the server has the version.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genrec_batch.core.errors import ConfigError, GenrecError, ModelError, RetryError
from genrec_batch.io import durable
from genrec_batch.model import registry
from genrec_batch.model.registry import Reference, Version
from genrec_batch.model.registry_files import Root
from genrec_batch.runtime import progress
from genrec_batch.runtime.console import LOG
from genrec_batch.serving import config_text, expected, repository, versions
from genrec_batch.serving.arms import MODEL_FOLDER, SERVING_FILE
from genrec_batch.serving.follow_options import FollowConfig
from genrec_batch.serving.repository import Content
from genrec_batch.serving.server import Server
from genrec_batch.stores import copies

AGAIN = "it is tried again when the registry names another version, or when this command is started anew"


@dataclass(kw_only=True)
class Follower:
    """What follows one model of a repository; `refused` and `said` are what it remembers between looks."""

    config: FollowConfig
    root: Root
    references: Mapping[str, Reference]  # by place in a version
    server: Server | None
    refused: tuple[str, GenrecError] | None = None  # serving.json of the version that cannot be served, and why
    said: str = ""  # the last failure, which is not said twice
    home: Path = field(init=False)

    def __post_init__(self) -> None:
        self.home = self.config.repository / self.config.name

    @staticmethod
    def of(config: FollowConfig, name: str | None) -> Follower:
        """Check the options, and return a follower of NAME or of the arms.

        Raises:
            ConfigError, EngineError, ModelError: an option cannot be used.
        """
        arms = config.arms()
        if (name is None) != bool(arms):
            raise ConfigError(
                "model follow takes either NAME or --arm NAME=registry:NAME@ALIAS:WEIGHT for each model of an "
                "experiment"
            )
        for arm in arms:
            if not registry.is_reference(arm.model):
                raise ConfigError(
                    f"--arm {arm.name}={arm.model}: a registry is followed, such as registry:ranker@champion"
                )
        named = {repository.place_of(arm.name): (arm.model, f"--arm {arm.name}") for arm in arms}
        if name is not None:
            named = {MODEL_FOLDER: (name, "NAME")}
        durable.check_local(config.repository, "--out")
        repository.check_options(config)
        url = config.triton
        return Follower(
            config=config,
            root=registry.root_of(config.registry, "model follow"),
            references={place: registry.parse(text, flag) for place, (text, flag) in named.items()},
            server=None if url is None else Server(url=url, model=config.name, patience_s=config.load_timeout),
        )

    def run(self) -> None:
        """Look until the process is ended; a look that fails leaves the version that is live."""
        while True:
            try:
                found = self.look()
                if self.said:
                    name = self.config.name
                    LOG.info("the failure is over: %s is version %d of %s", found["of"], found["version"], name)
                self.said = ""
            except GenrecError as error:
                if str(error) != self.said:
                    self.said = str(error)
                    LOG.warning("%s", error)
            progress.step()
            time.sleep(self.config.every)

    def look(self) -> dict[str, Any]:
        """Look at the registry, and swap where it names another version than the live one; return what is live now.

        Raises:
            RetryError: the registry or the server does not answer, the disk is full, another process writes.
            GenrecError: the version cannot be served; the one that was live stays.
        """
        found = {place: registry.resolve(self.root, each.name, each.which) for place, each in self.references.items()}
        followed = {place: {"version": each.label, "sha256": each.record["sha256"]} for place, each in found.items()}
        text = repository.serving_text(self.config, followed)
        number, changed = self._live(text), False
        if number is None:
            if self.refused is not None and self.refused[0] == text:
                raise self.refused[1]
            number, changed = self._swapped(found, followed, text)
        self.refused = None
        labels = ", ".join(each.label for each in found.values())
        return {"repository": str(self.home), "version": number, "of": labels, "changed": changed}

    def _live(self, text: str) -> int | None:
        """Return the number of the newest version if it is the wanted one and answers, None else.

        Raises:
            EngineError, RetryError: the server has ended since, and does not load it again.
        """
        numbers = versions.numbers(self.home)
        if not numbers or numbers[-1] > versions.known(self.home).stays or not self._is_of(numbers[-1], text):
            return None
        if self.server is not None and not self.server.is_ready(numbers[-1]):
            self.server.check_up()
            LOG.info("%s has not loaded version %d of %s", self.server.url, numbers[-1], self.config.name)
            self.server.load(numbers[-1])
            LOG.info("version %d of %s is loaded", numbers[-1], self.config.name)
        return numbers[-1]

    def _swapped(self, found: Mapping[str, Version], followed: repository.Followed, text: str) -> tuple[int, bool]:
        """Make a version live, and return its number and whether it is new; remember one that cannot be served."""
        labels, begun = ", ".join(each.label for each in found.values()), time.monotonic()
        try:
            with versions.changing(self.home, 0):
                self._settle()
            if self.server is not None:
                self.server.check_up()
            content = self._content(found, followed)
            with versions.changing(self.home, 0):
                number = self._live(text)
                if number is not None:  # another follower was faster
                    return number, False
                with versions.scratch(self.home) as folder:
                    number = self._put(folder, content, found)
        except RetryError:
            raise
        except GenrecError as error:
            told = type(error)(f"{labels} does not become live: {error}; {self._stays()}; {AGAIN}")
            self.refused = text, told
            raise told from error
        how = "in place" if self.server is None else "live"
        LOG.info(
            "%s is %s as version %d of %s after %.1f s", labels, how, number, self.config.name, time.monotonic() - begun
        )
        return number, True

    def _is_of(self, number: int, text: str) -> bool:
        path = self.home / str(number) / SERVING_FILE
        return path.is_file() and path.read_text() == text

    def _content(self, found: Mapping[str, Version], followed: repository.Followed) -> Content:
        """Read the versions of the registry, whose files are checked; those in a store are fetched."""
        folders = {}
        for place, version in found.items():
            with durable.disk_errors(copies.default_directory(), "the cache"):
                here = registry.on_disk(version)
            registry.check(here)
            assert isinstance(here.path, Path), "it is on the disk"
            folders[place] = here.path
        content = Content.of(folders, self.config, followed)
        path = self.home / versions.CONFIG
        before = config_text.stored_id_type(path.read_text()) if path.is_file() else None
        if before not in (None, config_text.stored_id_type(content.config)):
            raise ConfigError(
                f"its video ids are of another type than {before}, which clients of {self.home} read; follow it with "
                "another --name"
            )
        return content

    def _put(self, folder: Path, content: Content, found: Mapping[str, Version]) -> int:
        """Write a version, check it, put it in place, and let the server load it; return its number."""
        content.write(folder)
        for place, version in found.items():
            _check_copy(folder / place, version)
        answers = expected.computed(folder, content.warm_up)
        number = versions.place(self.home, content.config, content.warm_up)
        LOG.info("version %d of %s is checked and in place", number, self.config.name)
        if self.server is not None:
            self._loaded(self.server, number, answers)
        versions.stay(self.home, number)
        for old in versions.prune(self.home, self.config.keep):
            LOG.info("version %d of %s is removed", old, self.config.name)
        return number

    def _settle(self) -> None:
        """Confirm or withdraw what a killed follower has put in place."""
        numbers = versions.numbers(self.home)
        for number in [each for each in numbers if each > versions.known(self.home).stays]:
            if self.server is not None and number == numbers[-1] and self.server.has_loaded(number):
                versions.stay(self.home, number)
                LOG.info("version %d of %s is live; its swap had been interrupted", number, self.config.name)
            else:
                versions.withdraw(self.home, number)
                LOG.info("version %d of %s is withdrawn: its swap had been interrupted", number, self.config.name)

    def _loaded(self, server: Server, number: int, answers: list[dict[str, Any]]) -> None:
        """Let the server load a version and ask it; one that fails is withdrawn."""
        try:
            server.load(number)
            for each in answers:
                answer = server.answer(each["request"])
                if answer["number"] != number:
                    raise ModelError(f"version {answer['number']} answers, not {number}")
                expected.compare(each, answer, self.config.precision)
        except GenrecError:
            versions.withdraw(self.home, number)
            before = versions.known(self.home).stays
            if before and not server.is_ready(before):  # it had been live for a moment
                server.load(before)
            raise

    def _stays(self) -> str:
        before = versions.known(self.home).stays
        return f"version {before} stays" if before else "there is no version yet"


def _check_copy(folder: Path, version: Version) -> None:
    """Compare the copied files of a model with what was registered."""
    for name, digest in registry.digests(folder).items():
        if version.record["files"].get(name) != digest:
            raise RetryError(f"{folder / name}: not what was registered as {version.label}; it changed meanwhile")
