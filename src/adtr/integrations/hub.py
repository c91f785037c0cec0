"""Models on the Hugging Face hub."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from adtr.errors import ConfigError, ModelError
from adtr.store import BACKBONE, CONFIG, METADATA, README, WEIGHTS, save_model

if TYPE_CHECKING:
    from adtr.detector import AnomalyDetector
    from adtr.metrics import Metrics


class Shareable:
    """`from_pretrained`, `save_pretrained` and `push_to_hub`, as users of the hub expect them.

    These are calls of the hub's plain functions, not its ModelHubMixin: that would make huggingface_hub a part of
    importing adtr, and it builds the object from the constructor's arguments in `config.json`, while here one loader
    checks every file's hash and shape wherever a model comes from.
    """

    @classmethod
    def from_pretrained(  # type: ignore[misc]  # of the class that this is a part of
        cls: type[AnomalyDetector],
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        device: str = "auto",
        backbone_weights: str | os.PathLike[str] | None = None,
    ) -> AnomalyDetector:
        """Read a model of the hub, or of a folder; see `AnomalyDetector.load`.

        Only the model's own files are fetched. They are checked as any model folder is, and no code from them is run.

        Args:
            model: a repository such as "user/name"; a folder of that name goes first.
            revision: branch, tag or commit.
            token: for private repositories; by default the one that `hf auth login` keeps.
            cache_dir: where the hub's files are kept.
            local_files_only: take what was fetched before.
            device: see `AnomalyDetector`.
            backbone_weights: see `AnomalyDetector`.

        Raises:
            ConfigError: huggingface_hub is not installed.
            ModelError: the repository cannot be had, or holds no sound model.
        """
        folder = Path(model)
        if not folder.is_dir():
            hub = _library()
            with _explained(f"cannot fetch the model {model}"):
                folder = Path(
                    hub.snapshot_download(
                        str(model),
                        revision=revision,
                        token=token,
                        cache_dir=cache_dir,
                        local_files_only=local_files_only,
                        allow_patterns=[WEIGHTS, CONFIG, METADATA, BACKBONE],
                    )
                )
        detector: AnomalyDetector = cls.load(folder, device=device, backbone_weights=backbone_weights)
        return detector

    def save_pretrained(  # type: ignore[misc]
        self: AnomalyDetector,
        folder: str | os.PathLike[str],
        *,
        name: str | None = None,
        metrics: Metrics | None = None,
        store_backbone: bool = False,
    ) -> None:
        """Write the model folder for others: with a model card, without paths of this machine or kept features.

        Args:
            folder: is created; an older model folder is replaced.
            name: of the repository, for the card; by default the folder's.
            metrics: what `evaluate` gave, for the card.
            store_backbone: see `AnomalyDetector.save`.

        Raises:
            AdtrError: see `AnomalyDetector.save`.
        """
        from adtr.integrations.card import model_card

        self._require_fitted()
        metadata = without_paths(self.metadata_)
        card = model_card(
            self.fitted_config_,
            metadata,
            self.thresholds_,
            backbone=self.network_.embedding.source,
            name=name or Path(folder).name,
            metrics=metrics,
        )
        save_model(
            Path(folder),
            self.network_,
            self.calibration_,
            metadata,
            store_backbone=store_backbone or self.needs_backbone,
            readme=card,
        )

    def push_to_hub(  # type: ignore[misc]
        self: AnomalyDetector,
        repository: str,
        *,
        metrics: Metrics | None = None,
        store_backbone: bool = False,
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
        commit_message: str = "Upload an adtr model",
    ) -> str:
        """Put the model into a repository of the hub, which is created where there is none; see `save_pretrained`.

        Returns:
            The commit's address.

        Raises:
            ConfigError: huggingface_hub is not installed.
            ModelError: the hub refuses, or cannot be reached.
        """
        hub = _library()
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            self.save_pretrained(folder, name=repository, metrics=metrics, store_backbone=store_backbone)
            with _explained(f"cannot push to {repository}"):
                hub.create_repo(repository, private=private, token=token, exist_ok=True)
                commit = hub.upload_folder(
                    repo_id=repository,
                    folder_path=folder,
                    allow_patterns=[WEIGHTS, CONFIG, METADATA, BACKBONE, README],
                    delete_patterns=["*.safetensors"],  # a backbone that an older model had stored
                    revision=revision,
                    token=token,
                    create_pr=create_pr,
                    commit_message=commit_message,
                )
        return str(commit.commit_url)


def without_paths(metadata: dict[str, Any]) -> dict[str, Any]:
    """A model's metadata without what tells of the machine that it was made on: paths, and remarks on files."""
    public = {**metadata, "data": {**metadata["data"], "path": None, "held_out_path": None}}
    if "improvements" in metadata:
        public["improvements"] = [{**past, "notes": []} for past in metadata["improvements"]]
    return public


def _library() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError("models of the hub need huggingface_hub: pip install 'adtr[hub]'") from error
    return huggingface_hub


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns what the hub and the network refuse into one line."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    transport: type[Any] = HfHubHTTPError.__bases__[0]  # of requests, httpx or httpx2, by the version
    try:
        yield
    except (OSError, transport, HFValidationError) as error:  # the hub's own errors are OSErrors
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ModelError(f"{what}: {' '.join(lines[:2]) or type(error).__name__}") from error
